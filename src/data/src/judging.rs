//! What a language model is asked that judges completions, and what its answer means.

use anyhow::{Result, anyhow, bail, ensure};
use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, UndefinedBehavior, Value, context};

use crate::layout::Prompt;

/// The prompt of a comparison, where a recipe has none of its own. Which place a completion has must not matter, so that it is said;
/// the verdict comes after the reasons (Zheng et al., arXiv 2306.05685, figure 5).
pub const PAIRWISE: &str = "\
You compare two answers to the same prompt.
{{ criteria or 'Which answer is more helpful, correct and clear?' }}
Neither the order in which the answers stand nor their length alone makes one better.
{% for example in examples %}
[Example {{ loop.index }}]
{{ example }}
{% endfor %}
[Prompt]
{{ prompt }}

[Answer A]
{{ a }}

[Answer B]
{{ b }}

[Task]
Say briefly what decides. Then write the verdict on the last line, and nothing else on it: A if answer A is better, B if answer B is better, \
TIE if they are equally good.";

/// The prompt of a rating.
pub const RUBRIC: &str = "\
You rate an answer to a prompt.
{{ criteria or 'How helpful, correct and clear is the answer?' }}
{% for example in examples %}
[Example {{ loop.index }}]
{{ example }}
{% endfor %}
[Prompt]
{{ prompt }}

[Answer]
{{ completion }}

[Task]
Say briefly what decides. Then write the rating on the last line, and nothing else on it: a number from {{ min }} (worst) to {{ max }} (best).";

/// What a judge is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown<'a> {
    /// Two completions.
    Two {
        /// The one that stands first.
        a: &'a str,
        /// The other one.
        b: &'a str,
    },
    /// One completion.
    One(&'a str),
}

/// What a judge says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    /// Of two, the one that stood first.
    First,
    /// Of two, the other one.
    Second,
    /// Of two, neither.
    Tie,
    /// The score of one.
    Score(f64),
}

/// What a judge is told besides the completions.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Terms {
    /// What makes a completion better.
    pub criteria: Option<String>,
    /// Texts put before the question.
    pub examples: Vec<String>,
    /// The least and the greatest score.
    pub range: (f64, f64),
}

/// A compiled prompt for a judge.
pub struct JudgePrompt {
    environment: Environment<'static>,
    terms: Terms,
}

const NAME: &str = "template";

impl JudgePrompt {
    /// Compiles a template.
    ///
    /// Errors name the line of a template that can't be read, the place at which nothing is filled in, and the completion that it
    /// does not show: every question would be the same.
    pub fn new(source: &str, pairwise: bool, terms: Terms) -> Result<JudgePrompt> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build();
        environment.set_syntax(syntax.map_err(|error| explain(&error))?);
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment
            .add_template_owned(NAME, source.to_owned())
            .map_err(|error| explain(&error))?;
        let used = environment
            .get_template(NAME)
            .map_err(|error| explain(&error))?
            .undeclared_variables(false);
        let shown: &[&str] = if pairwise {
            &["a", "b"]
        } else {
            &["completion"]
        };
        for name in shown {
            ensure!(
                used.contains(*name),
                "the template does not show `{name}`: write {{{{ {name} }}}} where the judge should read it"
            );
        }
        let terms_given = [
            ("criteria", terms.criteria.is_some()),
            ("examples", !terms.examples.is_empty()),
        ];
        for (name, given) in terms_given {
            ensure!(
                !given || used.contains(name),
                "the template does not show `{name}`, so that the judge would not read what is given: write {{{{ {name} }}}} into it, or \
                 leave `{name}` out"
            );
        }
        let mut places = vec!["prompt"];
        places.extend(shown);
        places.extend(["criteria", "examples", "min", "max"]);
        for place in &places {
            // What stands between single braces elsewhere would be shown as it is here.
            let single = format!("{{{place}}}");
            let mut found = source.match_indices(&single);
            ensure!(
                found.all(|(at, _)| source[..at].ends_with('{')),
                "nothing is filled in at `{single}`: write {{{{ {place} }}}}; braces that are meant have a space behind them, `{{ {place}}}`"
            );
        }
        let known: Vec<&str> = places
            .iter()
            .copied()
            .chain(environment.globals().map(|(name, _)| name))
            .collect();
        let strangers = used.iter().filter(|name| !known.contains(&name.as_str()));
        // In the order of the alphabet: a set has none, and messages are to be the same each time.
        if let Some(stranger) = strangers.min() {
            let line = source.lines().position(|line| line.contains(stranger));
            let places: Vec<String> = places.iter().map(|place| format!("`{place}`")).collect();
            bail!(
                "the judge's template, line {}: nothing is filled in at `{stranger}`: the places are {}",
                line.unwrap_or(0) + 1,
                places.join(", ")
            );
        }
        let prompt = JudgePrompt { environment, terms };
        // What it needs shows at once, not after some answers.
        let blank = if pairwise {
            Shown::Two { a: "", b: "" }
        } else {
            Shown::One("")
        };
        prompt.render("", blank)?;
        Ok(prompt)
    }

    /// The text for the judge.
    pub fn render(&self, prompt: &str, shown: Shown) -> Result<String> {
        let Terms {
            criteria,
            examples,
            range: (min, max),
        } = &self.terms;
        let (min, max) = (number(*min), number(*max));
        let told = context! { prompt, criteria, examples, min, max };
        let completions = match shown {
            Shown::Two { a, b } => context! { a, b },
            Shown::One(completion) => context! { completion },
        };
        let all = context! { ..told, ..completions };
        let template = self.environment.get_template(NAME);
        template
            .and_then(|template| template.render(all))
            .map_err(|error| explain(&error))
    }
}

/// A number as a person writes it: 10, not 10.0.
fn number(x: f64) -> Value {
    if x.fract() == 0.0 && x.abs() < 1e15 {
        Value::from(x as i64)
    } else {
        Value::from(x)
    }
}

/// An error of the template engine with the template's line.
fn explain(error: &minijinja::Error) -> anyhow::Error {
    let message = match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    };
    match error.line() {
        Some(line) => anyhow!("the judge's template, line {line}: {message}"),
        None => anyhow!("the judge's template: {message}"),
    }
}

/// A prompt as a judge reads it: plain text as it is, one question of the user as well, of a conversation every turn with its role.
pub fn prompt_text(prompt: &Prompt) -> String {
    match prompt {
        Prompt::Text(text) => text.clone(),
        Prompt::Chat(messages) => match &messages[..] {
            [one] if one.role == "user" => one.content.clone(),
            _ => {
                let turns = messages.iter();
                let turns = turns.map(|turn| format!("{}: {}", turn.role, turn.content));
                turns.collect::<Vec<_>>().join("\n\n")
            }
        },
    }
}

/// What stands around a verdict in answers that are meant for people.
const AROUND: &[char] = &['*', '_', '`', '"', '\'', '[', ']', '(', ')'];

/// The verdict on the last line of an answer that is not empty, in capitals or not, with marks around it or without.
///
/// Errors say what was expected there: `A`, `B` or `TIE`, or a number within the range.
pub fn read_verdict(answer: &str, pairwise: bool, range: (f64, f64)) -> Result<Verdict> {
    let around = |c: char| c.is_whitespace() || AROUND.contains(&c);
    let mut lines = answer.lines().map(|line| line.trim_matches(around));
    let word = lines.rfind(|line| !line.is_empty()).unwrap_or_default();
    let word = word
        .strip_suffix('.')
        .unwrap_or(word)
        .trim_end_matches(around);
    if pairwise {
        return match word.to_ascii_uppercase().as_str() {
            "A" => Ok(Verdict::First),
            "B" => Ok(Verdict::Second),
            "TIE" => Ok(Verdict::Tie),
            _ => bail!("the last line must be the verdict, `A`, `B` or `TIE`, and nothing else"),
        };
    }
    match word.parse() {
        Ok(score) => Ok(Verdict::Score(in_range(score, range)?)),
        Err(_) => bail!(
            "the last line must be a number from {} to {}, and nothing else",
            range.0,
            range.1
        ),
    }
}

/// A score, when it is one.
///
/// Errors when it is not finite or out of range.
pub fn in_range(score: f64, (min, max): (f64, f64)) -> Result<f64> {
    ensure!(
        (min..=max).contains(&score),
        "the score must be a number from {min} to {max}, and {score} is not"
    );
    Ok(score)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Message;

    const RANGE: (f64, f64) = (1.0, 10.0);

    fn verdict(answer: &str) -> Option<Verdict> {
        read_verdict(answer, true, RANGE).ok()
    }

    fn score(answer: &str) -> Option<f64> {
        match read_verdict(answer, false, RANGE).ok()? {
            Verdict::Score(score) => Some(score),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_verdict_is_the_last_line_and_nothing_else() {
        for (answer, wanted) in [
            ("A", Verdict::First),
            ("B is longer, but A is right.\n\n**A**\n\n", Verdict::First),
            ("[[B]]", Verdict::Second),
            ("because\r\n`B`.\r\n", Verdict::Second),
            ("TIE", Verdict::Tie),
            ("a", Verdict::First),
            ("It is close.\n** _tie_ **. ", Verdict::Tie),
            ("```\nb\n```\n", Verdict::Second),
            ("**[ B ]**\t", Verdict::Second),
        ] {
            assert_eq!(verdict(answer), Some(wanted), "{answer:?}");
        }
        for answer in [
            "",
            "  \n",
            "A is better",
            "Answer A",
            "A or B",
            "a tie",
            "**",
            "A\nBut see above.",
            "AB",
            "C",
        ] {
            assert_eq!(verdict(answer), None, "{answer:?}");
        }
    }

    #[test]
    fn a_score_is_a_finite_number_in_range() {
        for (answer, wanted) in [
            ("7", 7.0),
            ("good\n**8.5**", 8.5),
            ("10.", 10.0),
            ("1", 1.0),
            ("1e0", 1.0),
            ("** 7 **", 7.0),
        ] {
            assert_eq!(score(answer), Some(wanted), "{answer:?}");
        }
        for answer in [
            "",
            "0",
            "11",
            "-7",
            "7/10",
            "Rating: 7",
            "nan",
            "inf",
            "-inf",
            "seven",
            "7 8",
            ".5",
        ] {
            assert_eq!(score(answer), None, "{answer:?}");
        }
    }

    #[test]
    fn the_usual_prompts_show_what_is_compared() {
        let terms = Terms {
            criteria: Some("Which is kinder?".to_owned()),
            examples: vec!["first".to_owned(), "second".to_owned()],
            range: RANGE,
        };
        let two = JudgePrompt::new(PAIRWISE, true, terms.clone()).unwrap();
        let text = two
            .render("P {{ a }}", Shown::Two { a: "<1>", b: "<2>" })
            .unwrap();
        for part in [
            "Which is kinder?\n",
            "\n[Example 2]\nsecond\n",
            "\n[Prompt]\nP {{ a }}\n",
            "\n[Answer A]\n<1>\n",
            "\n[Answer B]\n<2>\n",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
        let one = JudgePrompt::new(
            RUBRIC,
            false,
            Terms {
                range: RANGE,
                ..Terms::default()
            },
        )
        .unwrap();
        let text = one.render("P", Shown::One("C")).unwrap();
        assert!(
            text.contains("\n[Answer]\nC\n") && text.contains("helpful, correct and clear"),
            "{text}"
        );
        assert!(
            text.contains("a number from 1 (worst) to 10 (best)"),
            "{text}"
        );
    }

    #[test]
    fn a_template_is_refused_before_anything_is_asked() {
        let error =
            |source: &str, pairwise| match JudgePrompt::new(source, pairwise, Terms::default()) {
                Ok(_) => panic!("{source} is taken"),
                Err(error) => error.to_string(),
            };
        assert!(error("{{ a }}", true).contains("does not show `b`"));
        assert!(error("{{ a }}{{ b }}", false).contains("does not show `completion`"));
        let stranger = "line 2: nothing is filled in at `promt`: the places are `prompt`, `completion`, `criteria`";
        assert!(error("one\n{{ completion }} {{ promt }}", false).contains(stranger));
        // Also where nothing is filled in only at times.
        let at_times = "{{ a }}{{ b }}{% if criteria %}{{ completion }}{% endif %}";
        assert!(error(at_times, true).contains("filled in at `completion`"));
        assert!(error("{{ completion }}{{ prompt.x.y }}", false).contains("line 1"));
        assert!(error("{{ completion }", false).contains("line 1"));
        let single = "nothing is filled in at `{prompt}`: write {{ prompt }};";
        assert!(error("{prompt} {{ a }}{{ b }}", true).contains(single));
        for fine in [
            "{% for i in range(2) %}{{ loop.index }}{% endfor %}{% set last = b %}{{ a }}{{ last }}",
            "{{prompt}} {{a}}{{b}} { a} {\"a\": 1}",
        ] {
            assert!(
                JudgePrompt::new(fine, true, Terms::default()).is_ok(),
                "{fine}"
            );
        }
        let deaf = Terms {
            criteria: Some("kind".to_owned()),
            ..Terms::default()
        };
        let error = JudgePrompt::new("{{ a }}{{ b }}", true, deaf)
            .err()
            .unwrap();
        assert!(error.to_string().contains("does not show `criteria`"));
    }

    #[test]
    fn a_conversation_is_shown_with_its_roles() {
        let chat = |turns: &[(&str, &str)]| {
            let turns = turns.iter().map(|(role, text)| Message::new(*role, *text));
            prompt_text(&Prompt::Chat(turns.collect()))
        };
        assert_eq!(chat(&[("user", "Why?")]), "Why?");
        assert_eq!(
            chat(&[("system", "Be brief."), ("user", "Why?")]),
            "system: Be brief.\n\nuser: Why?"
        );
        assert_eq!(prompt_text(&Prompt::Text("Once".to_owned())), "Once");
    }
}
