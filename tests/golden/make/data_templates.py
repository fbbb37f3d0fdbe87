"""Chat templates rendered by transformers' own Jinja environment, for src/data/tests/templates.rs.

Pinned: transformers 5.23.0, jinja2 3.1.6, trl 1.16.0 (for the templates of models under Apache-2.0 and MIT that it ships).
Run: python tests/golden/make/data_templates.py [FILE]   (FILE: also renders every template of trl into FILE, not committed)
"""

import json
import pathlib
import sys

import transformers
import trl
from transformers.utils import chat_template_utils

assert transformers.__version__ == "5.23.0" and trl.__version__ == "1.16.0"
OUT = pathlib.Path(__file__).parent.parent / "data" / "data" / "templates.json"
TRL = pathlib.Path(trl.__file__).parent / "chat_templates"

SMOLLM2 = """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system
You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>
' }}{% endif %}{{'<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"""

ZEPHYR = """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>
' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>
' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>
'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""

MISTRAL = """{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"""

# In the style of Llama 3's header tokens, with a date.
HEADERS = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}{{- "Environment: ipython\\n" }}{%- endif %}
{{- "Today: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif message.role == "tool" %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}"""

# In the style of Gemma: renamed roles, alternation by arithmetic, a system turn folded into the first one.
FOLDED = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- set first_user_prefix = messages[0]['content'] + '\\n\\n' -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- if (message['role'] == 'assistant') -%}
        {%- set role = "model" -%}
    {%- else -%}
        {%- set role = message['role'] -%}
    {%- endif -%}
    {{ '<start_of_turn>' + role + '\\n' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}{{ item['text'] | trim }}{%- endfor -%}
    {%- else -%}
        {{ raise_exception("Invalid content type") }}
    {%- endif -%}
    {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{'<start_of_turn>model\\n'}}
{%- endif -%}
"""

# Every construct that tends to differ between Jinja2 and another engine.
CONSTRUCTS = """{#- a comment with {% generation %} in it -#}
{% set ns = namespace(count=0, last='', seen=[]) %}
{% macro turn(message, index) %}
<{{ index }}:{{ message.role }}>{{ caller() if caller else message.content }}
{% endmacro %}
{% for message in messages if message.role != 'tool' %}
  {% set ns.count = ns.count + 1 %}
  {% if message.role == 'system' and not loop.first %}{% continue %}{% endif %}
  {% if loop.index > 6 %}{% break %}{% endif %}
{{ turn(message, loop.index0) }}
  {% set ns.last = message.content %}
  {{- '|' ~ loop.length ~ '|' ~ loop.revindex ~ '|' ~ (loop.previtem.role if loop.previtem is defined else none) ~ '|' }}
{% endfor %}
count={{ ns.count }} last={{ ns.last[-5:] }} rev={{ messages[::-1][0].role }} two={{ messages[:2] | length }}
{{ ns.last.split('</think>')[-1].lstrip('\\n') }} {{ ns.last.split(' ')[0].rstrip('?!.') }} {{ ns.last.split() | join('_') }}
{{ ns.last | upper }} {{ ns.last.title() }} {{ ns.last.strip().startswith('A') }} {{ 'x' in ns.last }} {{ ns.last.replace('a', 'b') }}
{{ true }} {{ none }} {{ 1.0 }} {{ 3 // 2 }} {{ 7 / 2 }} {{ -7 % 3 }} {{ 2 ** 10 }} {{ [1, 'a', none] }} {{ {'k': 1.5} }} {{ ('a', 'b') }}
{{ missing is defined }} {{ missing }} {{ missing | default('fallback') }} {{ pad_token is defined }} {{ tools is none }}
{{ {'b': [1, 2.0, 1e20, 1e-7, true, none], 'a': 'ü"\\\\<>&\\n'} | tojson }}
{{ {'b': [], 'a': {'c': 1}} | tojson(indent=2) }}
{{ messages[0] | tojson }} {{ messages[0].get('missing', 'no') }} {{ messages[0].items() | list | length }}
{% for key, value in messages[0].items() %}{{ key }}={{ value | length }};{% endfor %}

{{ 'a' if messages | length > 2 else 'b' }} {{ ['b', 'a', 'C'] | sort | join }} {{ range(3) | list }} {{ 'ab' * 2 }} {{ [1] + [2] }}
{{ messages | map(attribute='role') | unique | join(',') }} {{ messages | selectattr('role', 'equalto', 'user') | list | length }}
{{ (messages | last).role }} {{ (messages | first)['role'] }} {{ 'x' | string }} {{ '%s-%d' | format('a', 3) }} {{ 5 is odd }}
{{ none is iterable }} {{ 'a' is iterable }} {{ 3 is iterable }} {{ missing is iterable }} {{ {} is iterable }} {{ none is sequence }} {{ 'a' is sequence }} {{ {} is sequence }} {{ messages is sequence }} {{ missing is sequence }} {{ messages[0] is mapping }} {{ true is number }} {{ true is integer }}
{{ '  pad  ' | trim }}|{{ ' \\x1f x\\x1f ' | trim }}|{{ 'xxabxx'.strip('x') }}|{{ 'a\\r\\nb\\x0bc'.splitlines() | join('+') }}|{{ 'pre-x'.removeprefix('pre-') }}
{%- if add_generation_prompt +%}
    {{- 'GO' -}}
{%- endif %}
"""

GENERATION = """{% for message in messages %}
{% if message.role == 'assistant' %}
{{ '<|im_start|>assistant\\n' }}{% generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}
{% else %}
{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{% endif %}
{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""


def turn(role, content):
    return {"role": role, "content": content}


CONVERSATIONS = [
    [turn("user", "What is the capital of France?")],
    [turn("user", "Hi!"), turn("assistant", "Hello, how can I help?")],
    [turn("system", "  Be brief.\n"), turn("user", "Hi <b>there</b> & you"), turn("assistant", "  Yes?  \n")],
    [
        turn("user", "Wie heißt du? 🦀"),
        turn("assistant", "<think>\nhm\n</think>\n\nFerris."),
        turn("user", "A\n\nand\tB"),
        turn("assistant", "A crab. {{ not a template }} {% nor this %}"),
    ],
    [
        turn("system", "S"),
        turn("user", "one"),
        turn("assistant", "two"),
        turn("tool", '{"rows": [1, 2]}'),
        turn("assistant", "three"),
        turn("user", ""),
    ],
    [turn("assistant", "I begin."), turn("user", "And I answer.")],
    [turn("user", "u"), turn("user", "v")],
]
DATE = "07 Mar 2025"


class Frozen(chat_template_utils.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2025, 3, 7, 9, 5, 0)


def render(source, tokens):
    cases = []
    for conversation in CONVERSATIONS:
        for prompt in (False, True):
            case = {"messages": conversation, "add_generation_prompt": prompt}
            marked = "endgeneration" in source and not prompt
            try:
                texts, generations = chat_template_utils.render_jinja_template(
                    [conversation],
                    chat_template=source,
                    add_generation_prompt=prompt,
                    return_assistant_tokens_mask=marked,
                    **tokens,
                )
                case["text"] = texts[0]
                if marked:
                    case["generations"] = [list(span) for span in generations[0]]
            except Exception as error:
                case["error"] = str(error)
            cases.append(case)
    return cases


def main():
    chat_template_utils.datetime = Frozen
    plain = {"bos_token": "<s>", "eos_token": "</s>"}
    sources = {
        "smollm2": (SMOLLM2, {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}),
        "zephyr": (ZEPHYR, plain),
        "mistral": (MISTRAL, plain),
        "headers": (HEADERS, {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}),
        "folded": (FOLDED, {"bos_token": "<bos>", "eos_token": "<eos>"}),
        "constructs": (CONSTRUCTS, plain),
        "generation": (GENERATION, {}),
    }
    for name in ["qwen2_5_training", "qwen3", "phi3_training"]:
        sources[name] = ((TRL / f"{name}.jinja").read_text(), {"eos_token": "<|im_end|>"})
    out = [
        {"name": name, "source": source, "tokens": tokens, "cases": render(source, tokens)}
        for name, (source, tokens) in sources.items()
    ]
    OUT.write_text(json.dumps(out, ensure_ascii=False, indent=0) + "\n")
    print(OUT, OUT.stat().st_size)
    if len(sys.argv) > 1:
        every = [
            {"name": path.stem, "source": path.read_text(), "tokens": plain, "cases": render(path.read_text(), plain)}
            for path in sorted(TRL.glob("*.jinja"))
        ]
        pathlib.Path(sys.argv[1]).write_text(json.dumps(every, ensure_ascii=False))


main()
