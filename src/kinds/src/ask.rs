//! `ask`: sampled completions → scores, by an external program or a chat endpoint.

use engine::artifact::ArtifactType;
use engine::contract::{
    Arity, Choice, Contract, FieldType, Inputs, Literal, Need, Output, Pool, Port, Repeatable, Rows,
};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::words::{NUMBER, POSITIVE, each, execution, field, words};

/// The parameters.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ask {
    /// `pairwise` or `rubric`.
    pub how: String,
    /// The address before `/chat/completions`.
    pub endpoint: Option<String>,
    /// What the endpoint is asked for.
    pub model: Option<String>,
    /// The name of an environment variable.
    pub key_from: Option<String>,
    /// The words of a command.
    pub program: Option<Vec<String>>,
    /// As written; the file comes with the job.
    pub script: Option<Value>,
    /// What is asked.
    pub criteria: Option<String>,
    /// Judged examples.
    pub examples: Vec<String>,
    /// A prompt of one's own.
    pub template: Option<String>,
    /// The least score of a rubric.
    pub min: f64,
    /// The greatest score of a rubric.
    pub max: f64,
    /// The judge's.
    pub temperature: f64,
    /// The judge's.
    pub max_tokens: u32,
    /// Sent along.
    pub seed: u64,
    /// Requests at once.
    pub parallel: usize,
    /// How long an answer may take.
    pub timeout_seconds: f64,
    /// How often a request that failed in passing is made again.
    pub retries: u32,
    /// How often a question is asked whose answer can't be read.
    pub attempts: u32,
}

/// Every number about the judge. Sets of samples have other names: their numbers stand beside these.
pub const NUMBERS: [&str; 9] = [
    "calls",
    "retries",
    "score",
    "prompt_tokens",
    "completion_tokens",
    "comparisons",
    "ties",
    "inconsistent",
    "first_position_share",
];

/// The numbers; of several sets of samples each has its own as well.
fn names(params: &Map<String, Value>, named: &dyn Fn(&str) -> Vec<String>) -> Vec<String> {
    let given = |name: &str| params.get(name).is_some_and(|value| !value.is_null());
    let mut all = NUMBERS[..3].to_vec();
    if given("endpoint") {
        all.extend(&NUMBERS[3..5]);
    }
    if params.get("how").and_then(Value::as_str) == Some("pairwise") {
        all.extend(&NUMBERS[5..]);
    }
    let mut all = words(&all);
    // One set alone has no name.
    let sets: Vec<String> = named("samples")
        .into_iter()
        .filter(|name| !name.is_empty())
        .collect();
    all.extend(each(&sets, &["score", "win_rate"]));
    all
}

/// How the first of several sets of samples does against itself.
fn constant(_: &Map<String, Value>, named: &dyn Fn(&str) -> Vec<String>) -> Vec<String> {
    let first: Vec<String> = named("samples").into_iter().take(1).collect();
    match first.first().is_none_or(String::is_empty) {
        true => Vec::new(),
        false => each(&first, &["win_rate"]),
    }
}

fn fits(params: &Map<String, Value>) -> Vec<(&'static str, String)> {
    let mut wrong = Vec::new();
    let given = |name: &str| {
        params.get(name).is_some_and(|value| match value {
            Value::Null => false,
            Value::Array(list) => !list.is_empty(),
            _ => true,
        })
    };
    match (given("endpoint"), given("program")) {
        (true, true) => wrong.push((
            "program",
            "one judge is asked: `endpoint` or `program`, not both".to_owned(),
        )),
        (false, false) => wrong.push((
            "kind",
            "who is asked? `endpoint: http://…/v1` with `model`, or `program: [python3]` with `script: judge.py`".to_owned(),
        )),
        (true, false) => {
            wrong.extend(endpoint_fits(params));
            if !given("model") {
                wrong.push(("endpoint", "an endpoint is asked for a `model`: name it".to_owned()));
            }
            if given("script") {
                wrong.push(("script", "`script` goes with `program`".to_owned()));
            }
        }
        (false, true) => {
            for name in ["model", "key_from", "criteria", "examples", "template"] {
                if given(name) {
                    wrong.push((name, format!("`{name}` is what an `endpoint` is told; a program gets the rows alone")));
                }
            }
            wrong.extend(program_fits(params));
        }
    }
    let number = |name: &str| params.get(name).and_then(Value::as_f64);
    if let (Some(min), Some(max)) = (number("min"), number("max"))
        && min >= max
    {
        wrong.push((
            "min",
            format!("`min` is less than `max`, which is {max}, not {min}"),
        ));
    }
    wrong
}

/// What is wrong with the address and the name of the key. No message repeats either: they may hold a secret.
fn endpoint_fits(params: &Map<String, Value>) -> Option<(&'static str, String)> {
    let text = |name: &str| params.get(name).and_then(Value::as_str);
    let address = text("endpoint")?;
    let (scheme, rest) = address.split_once("://").unwrap_or_default();
    let host = rest.split('/').next().unwrap_or_default();
    if !matches!(scheme, "http" | "https") || host.is_empty() {
        let message = "`endpoint` is an address such as `http://localhost:8080/v1`, to which `/chat/completions` is added";
        return Some(("endpoint", message.to_owned()));
    }
    if address.contains(['@', '?', '#']) {
        let message = "an endpoint has no user, password or query in it, which would be kept in records: name the key's environment \
                       variable with `key_from`";
        return Some(("endpoint", message.to_owned()));
    }
    let name = text("key_from")?;
    let letters = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    if !name.ends_with("_API_KEY") || !name.chars().all(letters) {
        let message = "`key_from` is the name of an environment variable that ends in `_API_KEY`, such as `OPENAI_API_KEY`, never the key \
                       itself: other variables are not a recipe's to send away";
        return Some(("key_from", message.to_owned()));
    }
    if scheme == "http" && !is_loopback(host) {
        let message = "a key goes over https, or to this machine";
        return Some(("endpoint", message.to_owned()));
    }
    None
}

/// Whether a host with its port is this machine.
pub fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    let address = name.parse::<std::net::IpAddr>();
    name.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address| address.is_loopback())
}

/// A file of the recipe's must be a source, or its content would not be in the record.
fn program_fits(params: &Map<String, Value>) -> Option<(&'static str, String)> {
    let list = params.get("program")?.as_array()?;
    let words: Vec<&str> = list.iter().filter_map(Value::as_str).collect();
    let scripts = [".py", ".sh", ".js", ".rb", ".pl", ".lua", ".jl", ".R"];
    let is_file = |(place, word): (usize, &&str)| {
        let relative = !word.starts_with('/');
        relative
            && (place == 0 && word.contains('/') || scripts.iter().any(|end| word.ends_with(end)))
    };
    if let Some((_, word)) = words.iter().enumerate().find(|found| is_file(*found)) {
        return Some((
            "program",
            format!(
                "`{word}` is a file of the recipe's: name it with `script: {word}`, so that a change of it is seen"
            ),
        ));
    }
    let placed = words
        .iter()
        .filter(|word| **word == engine::contract::SCRIPT)
        .count();
    let script = params.get("script").is_some_and(|value| !value.is_null());
    match (placed, script) {
        (0, _) | (1, true) => None,
        _ => Some((
            "program",
            "`{script}` stands once, for the file that `script` names".to_owned(),
        )),
    }
}

/// Sets of samples whose own numbers would take the place of those about the judge.
fn fits_inputs(_: &Map<String, Value>, inputs: &Inputs<'_>) -> Vec<(&'static str, String)> {
    let names = (inputs.names)("samples").into_iter();
    names
        .filter(|name| NUMBERS.contains(&name.as_str()))
        .map(|name| {
            let message = format!(
                "a set of samples is called `{name}`, as one of the metrics is: give it another name, `samples: {{ NAME: … }}`"
            );
            ("samples", message)
        })
        .collect()
}

/// The contract.
pub const CONTRACT: Contract = Contract {
    kind: "ask",
    version: 1,
    about: "Has an external program or a chat endpoint judge sampled completions: scores, win rates.",
    manual: "\
The groups are those of `annotate`: rows that follow each other and have the same prompt, each completion once. With several sets of
samples, prompt i of one is prompt i of the others.

| how | asked | score of a completion |
|---|---|---|
| `pairwise` | every pair of a prompt's completions, in both orders (a judge may prefer a place); with several sets only pairs across sets | the mean of its results: won 1, tie 0.5, lost 0 |
| `rubric` | every completion | the number that the judge gives, from `min` to `max` |

A pair whose two orders name different winners counts as a tie, and as `inconsistent` (Zheng et al., arXiv 2306.05685). A text that two sets
have ties with itself unasked. A completion without comparison (the only one of its prompt) is left out.

**Metrics.** `calls`: questions that were answered, equal ones once. `retries`: requests that were made again. `score`: the mean over rows. Pairwise:
`comparisons` (pairs), `ties` (share of pairs without a winner, the inconsistent ones among them), `inconsistent` (share of pairs),
`first_position_share` (how often the winner was the one that stood first; 0.5 is fair; not a number when all answers are ties). Of an
endpoint `prompt_tokens` and `completion_tokens`, not a number unless it reports them. Of several sets by name, prompt by
prompt: `NAME.score`, the mean of its scores, and `NAME.win_rate`, how often its completion wins against that of the first set, ties half.

**An endpoint** is sent `POST ENDPOINT/chat/completions` with `model`, one message of the user, `temperature`, `max_tokens` and `seed`, as OpenAI,
vLLM, llama.cpp and others take it. The last line of the answer that is not empty must be the verdict and nothing else: `A`, `B` or `TIE`, or a
number from `min` to `max`; capitals do not matter, nor do `*`, `_`, `` ` ``, quotes and brackets around it, nor a dot behind it. Above `temperature: 0`
another answer is asked for again, with the next seed, up to `attempts` times; then the stage fails, and at 0 at once. 408, 429, 5xx, broken connections and silence are tried again up to `retries` times, each pause
twice as long, or as long as `Retry-After` says. A `template` is Jinja with `prompt` (of a conversation its turns, each as `role: content`), `a` and `b`
or `completion`, `criteria`, `examples`, `min` and `max`. The key never enters records, events, logs or answers; it goes over https or to this machine.

**A program** reads JSON lines from standard input, `{\"id\", \"prompt\", \"a\", \"b\"}` or `{\"id\", \"prompt\", \"completion\"}`, and writes one for each to standard
output, in any order: `{\"id\", \"winner\": \"a\"}` (or `\"b\"`, `\"tie\"`) or `{\"id\", \"score\": 7}`. It is started once, without a shell, in an empty folder, and ends when
its input does. It runs only with `levain run --allow-programs`. Its words and the content of its `script` are in the key; what else it reads is not.

Every answer is kept at once, on the disk: after a failure, Ctrl-C or a kill the next run asks only what is missing. The answers are `answers.jsonl` of the
metrics.",
    example: "asked: { kind: ask, samples: tries, endpoint: \"http://localhost:8080/v1\", model: judge-7b, criteria: \"Which answer is more helpful?\" }",
    pool: Pool::Cpu,
    repeatable: Repeatable::Recorded,
    fields: &[
        field(
            "how",
            FieldType::Choice(&[
                Choice { word: "pairwise", doc: "which of two completions is better, in both orders" },
                Choice { word: "rubric", doc: "a number for each completion" },
            ]),
            Need::Default(Literal::Text("pairwise")),
            "What the judge is asked.",
        ),
        field("endpoint", FieldType::Text, Need::Optional, "The address of an OpenAI-compatible server up to `/chat/completions`."),
        field("model", FieldType::Text, Need::Optional, "The endpoint's name of the model that judges."),
        execution(
            "key_from",
            FieldType::Text,
            Need::Optional,
            "The name of the environment variable that holds the endpoint's key; it ends in `_API_KEY`.",
        ),
        field(
            "program",
            FieldType::Program { script: "script" },
            Need::Optional,
            "A program and its arguments, instead of an endpoint: a name that is found in PATH, or an absolute path.",
        ),
        field(
            "script",
            FieldType::Source,
            Need::Optional,
            "The file that the program is given: in place of the word `{script}`, else behind its words. Its content is in the key.",
        ),
        field("criteria", FieldType::Text, Need::Optional, "What makes a completion better, for the endpoint's prompt."),
        field(
            "examples",
            FieldType::List { of: &FieldType::Text, min: 0 },
            Need::Default(Literal::EmptyList),
            "Texts put before the question, such as judged examples.",
        ),
        field("template", FieldType::Text, Need::Optional, "A prompt of one's own, in Jinja; it must ask for the verdict on the last line."),
        field("min", NUMBER, Need::Default(Literal::Number(1.0)), "`rubric`: the least score; another one is no answer."),
        field("max", NUMBER, Need::Default(Literal::Number(10.0)), "`rubric`: the greatest score."),
        field(
            "temperature",
            FieldType::Number { min: 0.0, max: 2.0, above: false },
            Need::Default(Literal::Number(0.0)),
            "Sent to the endpoint: 0 takes the likeliest token every time.",
        ),
        field(
            "max_tokens",
            FieldType::Integer { min: 1, max: 1 << 20 },
            Need::Default(Literal::Integer(1024)),
            "Sent to the endpoint: the longest answer, reasoning included.",
        ),
        field("seed", FieldType::Seed, Need::Optional, "Sent to the endpoint; the recipe's seed unless given."),
        execution(
            "parallel",
            FieldType::Integer { min: 1, max: 256 },
            Need::Default(Literal::Integer(4)),
            "Requests to the endpoint at once.",
        ),
        execution(
            "timeout_seconds",
            POSITIVE,
            Need::Default(Literal::Number(120.0)),
            "How long an endpoint may take for an answer, and a program be silent.",
        ),
        execution(
            "retries",
            FieldType::Integer { min: 0, max: 100 },
            Need::Default(Literal::Integer(7)),
            "How often a request that failed in passing is made again; the pauses are 0.5 s, 1 s, 2 s and so on, at most 60 s.",
        ),
        execution(
            "attempts",
            FieldType::Integer { min: 1, max: 100 },
            Need::Default(Literal::Integer(3)),
            "How often an endpoint is asked a question until its answer can be read; once at `temperature: 0`, where it would say the same again.",
        ),
    ],
    ports: &[Port {
        name: "samples",
        accepts: &[ArtifactType::Dataset],
        arity: Arity::OneOrMany,
        layouts: &["prompt-completion", "messages", "scored", "preference", "ranking", "unpaired"],
        doc: "Prompts with completions: one set, or several by name, which are compared.",
    }],
    outputs: &[
        Output::new("rows", ArtifactType::Dataset, "The completions with their scores."),
        Output::new("metrics", ArtifactType::Metrics, "Numbers about the judge and the sets of samples, and every answer.").metrics(names).constant(constant),
    ],
    preparations: &[],
    layout: Some(|_, _| Some(Rows::of("scored"))),
    check: fits,
    check_inputs: Some(fits_inputs),
    memory: None,
};

#[cfg(test)]
mod tests {
    use super::*;

    /// The field that is complained about first, where there is one.
    fn wrong(params: Value) -> Option<&'static str> {
        let Value::Object(params) = params else {
            panic!("an object")
        };
        fits(&params).first().map(|(name, _)| *name)
    }

    fn keyed(endpoint: &str, name: &str) -> Option<&'static str> {
        wrong(serde_json::json!({ "endpoint": endpoint, "model": "m", "key_from": name }))
    }

    #[test]
    fn a_key_is_a_name_and_goes_over_https_or_nowhere_else() {
        let name = "OPENAI_API_KEY";
        for endpoint in [
            "https://example.com/v1",
            "http://localhost:8080/v1",
            "http://127.0.0.1/v1",
            "http://[::1]:80/v1",
        ] {
            assert_eq!(keyed(endpoint, name), None, "{endpoint}");
        }
        for endpoint in [
            "http://example.com/v1",
            "http://127.example.com/v1",
            "http://localhost.example.com/v1",
            "https://user:secret@example.com/v1",
            "https://example.com/v1?key=secret",
            "ftp://localhost/v1",
            "localhost:8080/v1",
            "http:///v1",
        ] {
            assert_eq!(keyed(endpoint, name), Some("endpoint"), "{endpoint}");
        }
        for name in ["sk-abc", "HOME", "AWS_SECRET_ACCESS_KEY", "my_API_KEY"] {
            assert_eq!(
                keyed("https://example.com/v1", name),
                Some("key_from"),
                "{name}"
            );
        }
    }

    #[test]
    fn files_are_sources() {
        let program = |words: Value, script: Value| {
            wrong(serde_json::json!({ "program": words, "script": script }))
        };
        let json = |text: &str| serde_json::from_str::<Value>(text).unwrap();
        for fine in [
            r#"["python3"]"#,
            r#"["/opt/judge"]"#,
            r#"["python3", "{script}", "--strict"]"#,
            r#"["env", "a/b"]"#,
        ] {
            assert_eq!(program(json(fine), "judge.py".into()), None, "{fine}");
        }
        assert_eq!(program(json(r#"["judge"]"#), Value::Null), None);
        for bad in [
            r#"["python3", "judge.py"]"#,
            r#"["./judge"]"#,
            r#"["env", "{script}"]"#,
        ] {
            assert_eq!(program(json(bad), Value::Null), Some("program"), "{bad}");
        }
    }
}
