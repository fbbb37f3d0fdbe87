//! Chat templates against transformers' own rendering (tests/golden/make/data_templates.py).

use std::path::Path;

use levain_data::{ChatTemplate, Message, Moment, SpecialTokens};
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    name: String,
    source: String,
    tokens: Tokens,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Tokens {
    bos_token: Option<String>,
    eos_token: Option<String>,
}

#[derive(Deserialize)]
struct Case {
    messages: Vec<Message>,
    add_generation_prompt: bool,
    text: Option<String>,
    error: Option<String>,
    generations: Option<Vec<(usize, usize)>>,
}

fn golden(path: &Path) -> Vec<Golden> {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn compile(golden: &Golden, now: Option<Moment>) -> anyhow::Result<ChatTemplate> {
    let tokens = SpecialTokens {
        bos: golden.tokens.bos_token.clone(),
        eos: golden.tokens.eos_token.clone(),
        ..SpecialTokens::default()
    };
    ChatTemplate::new(&golden.source, &tokens, now)
}

/// What differs between our rendering and the golden one.
fn differences(golden: &[Golden]) -> Vec<String> {
    let now = Moment {
        seconds: Moment::date(2025, 3, 7).unwrap().seconds + 9 * 3600 + 5 * 60,
    };
    let mut found = Vec::new();
    for template in golden {
        let compiled = match compile(template, Some(now)) {
            Ok(compiled) => compiled,
            Err(error) => {
                found.push(format!("{}: {error:#}", template.name));
                continue;
            }
        };
        for (at, case) in template.cases.iter().enumerate() {
            let name = format!("{} case {at}", template.name);
            let ours = compiled.render(&case.messages, case.add_generation_prompt);
            match (ours, &case.text, &case.error) {
                (Ok(ours), Some(theirs), _) if ours == *theirs => {}
                (Err(_), None, Some(_)) => {}
                (ours, theirs, error) => {
                    found.push(format!(
                        "{name}:\n  ours   {ours:?}\n  theirs {theirs:?}{error:?}"
                    ));
                    continue;
                }
            }
            if let (Some(text), Some(spans)) = (&case.text, &case.generations) {
                let chars: Vec<usize> = text
                    .char_indices()
                    .map(|(at, _)| at)
                    .chain([text.len()])
                    .collect();
                let theirs: Vec<_> = spans
                    .iter()
                    .map(|(start, end)| chars[*start]..chars[*end])
                    .collect();
                let ours = compiled.render_marked(&case.messages).unwrap().generations;
                if ours.as_ref() != Some(&theirs) {
                    found.push(format!("{name}: generations {ours:?}, theirs {theirs:?}"));
                }
            }
        }
    }
    found
}

fn committed() -> Vec<Golden> {
    golden(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/data/data/templates.json"),
    )
}

#[test]
fn templates_render_as_in_transformers() {
    let golden = committed();
    assert!(golden.len() >= 10);
    let found = differences(&golden);
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn a_refusal_names_the_line_and_the_reason() {
    let golden = committed();
    let mistral = golden
        .iter()
        .find(|golden| golden.name == "mistral")
        .unwrap();
    let template = compile(mistral, None).unwrap();
    let error = template
        .render(&[Message::new("assistant", "hi")], false)
        .unwrap_err()
        .to_string();
    assert!(error.starts_with("chat template, line 1 ("), "{error}");
    assert!(
        error.contains("the template refuses: Conversation roles must alternate"),
        "{error}"
    );
}

#[test]
fn a_syntax_error_names_the_line() {
    let error = ChatTemplate::new("a\n{% for x in %}\n", &SpecialTokens::default(), None)
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("chat template, line 2 (`{% for x in %}`)"),
        "{error}"
    );
}

#[test]
fn without_a_date_a_template_takes_its_own_or_is_refused() {
    let golden = committed();
    let headers = golden
        .iter()
        .find(|golden| golden.name == "headers")
        .unwrap();
    let text = compile(headers, None)
        .unwrap()
        .render(&[Message::new("user", "hi")], false)
        .unwrap();
    assert!(text.contains("Today: 26 Jul 2024"), "{text}");
    let template =
        ChatTemplate::new("{{ strftime_now('%Y') }}", &SpecialTokens::default(), None).unwrap();
    let error = template
        .render(&[Message::new("user", "hi")], false)
        .unwrap_err()
        .to_string();
    assert!(error.contains("give it a fixed one"), "{error}");
}

#[test]
fn text_that_looks_like_a_mark_is_text() {
    let source =
        "{% for m in messages %}[{% generation %}{{ m.content }}{% endgeneration %}]{% endfor %}";
    let template = ChatTemplate::new(source, &SpecialTokens::default(), None).unwrap();
    let messages = [
        Message::new("assistant", "\u{f0000}0\u{f0001}b\u{f0000}1\u{f0001}"),
        Message::new("user", "é"),
    ];
    let rendered = template.render_marked(&messages).unwrap();
    assert_eq!(
        rendered.text,
        "[\u{f0000}0\u{f0001}b\u{f0000}1\u{f0001}][é]"
    );
    let said: Vec<&str> = rendered
        .generations
        .unwrap()
        .into_iter()
        .map(|span| &rendered.text[span])
        .collect();
    assert_eq!(said, [messages[0].content.as_str(), "é"]);
}

#[test]
fn dates_are_formatted_as_strftime_does() {
    // Python: datetime(2024, 2, 29, 13, 5, 9).strftime(...)
    let moment = Moment {
        seconds: Moment::date(2024, 2, 29).unwrap().seconds + 13 * 3600 + 5 * 60 + 9,
    };
    let pattern = "%d %b %Y|%A %a|%B %-d, %Y|%H:%M:%S|%I %p|%j|%y|%F %T|%%";
    assert_eq!(
        moment.format(pattern),
        "29 Feb 2024|Thursday Thu|February 29, 2024|13:05:09|01 PM|060|24|2024-02-29 13:05:09|%"
    );
    assert_eq!(Moment::date(2023, 2, 29), None);
    assert_eq!(Moment::date(1970, 1, 1), Some(Moment { seconds: 0 }));
}
