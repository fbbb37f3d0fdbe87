//! Questions of an exam as a model is given them: with shots, instructions, a template, choices by their letters.

use anyhow::{Context, Result, bail, ensure};

use crate::layout::{Message, Prompt};
use crate::random::Stream;
use crate::row::Row;
use crate::store::Dataset;

/// What stands between shots, and behind instructions, as in lm-evaluation-harness (`fewshot_delimiter`).
const BETWEEN: &str = "\n\n";
/// The most choices that have letters.
const LETTERS: usize = 26;

/// How questions of plain text are put. Conversations are put as turns.
#[derive(Clone, Debug, PartialEq)]
pub struct Manner {
    /// The text of a question: `{prompt}` is what its row asks, `{choices}` a line `A. …` for each choice.
    pub template: String,
    /// What comes before everything; of a conversation the system's turn.
    pub instructions: Option<String>,
    /// Whether choices are answered by their letters, and not by their texts.
    pub letters: bool,
}

/// A question as a model is given it.
#[derive(Clone, Debug, PartialEq)]
pub struct Asked {
    /// What comes before the answer.
    pub prompt: Prompt,
    /// What is between the prompt and an answer: a space behind plain text that does not end in one.
    pub gap: &'static str,
    /// The answers to choose from; none where the row has no choices.
    pub choices: Vec<String>,
    /// The place of the right one among them, 0 where there are none.
    pub right: usize,
    /// The right answer.
    pub answer: String,
}

impl Manner {
    /// Puts the question of a row behind those of `shots`, which are shown with their answers.
    ///
    /// Errors for a row without an answer, and for letters where there are no choices or more than 26.
    pub fn ask(&self, row: &Row, shots: &[Row]) -> Result<Asked> {
        let (prompt, choices, answer) = self.parts(row)?;
        let right = match row {
            Row::Choices { answer, .. } => *answer as usize,
            _ => 0,
        };
        let (prompt, gap) = match prompt {
            Prompt::Text(text) => (Prompt::Text(self.text(row, &text, shots)?), self.gap()),
            Prompt::Chat(turns) => (Prompt::Chat(self.turns(row, turns, shots)?), ""),
        };
        Ok(Asked {
            prompt,
            gap,
            choices,
            right,
            answer,
        })
    }

    fn gap(&self) -> &'static str {
        match self.template.ends_with(char::is_whitespace) {
            true => "",
            false => " ",
        }
    }

    /// (prompt, choices, right answer) of a row, the answers as models are to give them.
    fn parts(&self, row: &Row) -> Result<(Prompt, Vec<String>, String)> {
        let (prompt, answer) = row.question();
        let answer = answer.map(str::trim).filter(|text| !text.is_empty());
        let answer = answer.context("the row has no answer to compare with")?;
        let (choices, right) = match row {
            Row::Choices {
                choices, answer, ..
            } => (&choices[..], *answer as usize),
            _ => (&[][..], 0),
        };
        if !self.letters {
            let choices = choices.iter().map(|c| c.trim().to_owned());
            return Ok((prompt, choices.collect(), answer.to_owned()));
        }
        ensure!(
            !choices.is_empty(),
            "the row has no choices, so there are no letters to answer with"
        );
        ensure!(
            choices.len() <= LETTERS,
            "the row has {} choices, and there are {LETTERS} letters",
            choices.len()
        );
        let letters: Vec<String> = (0..choices.len()).map(letter).collect();
        let answer = letters[right].clone();
        Ok((prompt, letters, answer))
    }

    /// Instructions, shots and the question as one text.
    fn text(&self, row: &Row, text: &str, shots: &[Row]) -> Result<String> {
        let mut whole = String::new();
        if let Some(instructions) = &self.instructions {
            whole += instructions;
            whole += BETWEEN;
        }
        for shot in shots {
            let (prompt, _, answer) = self.parts(shot)?;
            whole += &self.filled(shot, prompt.question());
            whole += self.gap();
            whole += &answer;
            whole += BETWEEN;
        }
        Ok(whole + &self.filled(row, text))
    }

    /// Instructions, shots and the question as turns of a conversation. Instructions and the question's own system turn are one.
    fn turns(&self, row: &Row, turns: Vec<Message>, shots: &[Row]) -> Result<Vec<Message>> {
        let system = turns.iter().take_while(|turn| turn.role == "system");
        let (system, own) = turns.split_at(system.count());
        let before: Vec<&str> = self
            .instructions
            .as_deref()
            .into_iter()
            .chain(system.iter().map(|turn| turn.content.as_str()))
            .collect();
        let mut all = Vec::new();
        if !before.is_empty() {
            all.push(Message::new("system", before.join(BETWEEN)));
        }
        for shot in shots {
            let (prompt, _, answer) = self.parts(shot)?;
            let shown = match prompt {
                Prompt::Text(text) => vec![Message::new("user", text)],
                Prompt::Chat(turns) => turns,
            };
            let shown = shown.into_iter().filter(|turn| turn.role != "system");
            let first = all.len();
            all.extend(shown);
            self.list(shot, &mut all[first..]);
            all.push(Message::new("assistant", answer));
        }
        let first = all.len();
        all.extend_from_slice(own);
        self.list(row, &mut all[first..]);
        Ok(all)
    }

    /// Puts the choices with their letters behind the last turn, where letters answer.
    fn list(&self, row: &Row, turns: &mut [Message]) {
        if let (true, Some(last)) = (self.letters, turns.last_mut()) {
            last.content = format!("{}\n{}", last.content, lines(row).trim_end());
        }
    }

    /// The template with what a row asks. What the row itself has of braces stays.
    fn filled(&self, row: &Row, prompt: &str) -> String {
        let mut out = String::new();
        let mut rest = self.template.as_str();
        while let Some(at) = rest.find('{') {
            let (before, from) = rest.split_at(at);
            out += before;
            if let Some(after) = from.strip_prefix("{prompt}") {
                out += prompt;
                rest = after;
            } else if let Some(after) = from.strip_prefix("{choices}") {
                out += &lines(row);
                rest = after;
            } else {
                out.push('{');
                rest = &from[1..];
            }
        }
        out + rest
    }
}

/// A line `A. …` for each choice.
fn lines(row: &Row) -> String {
    let Row::Choices { choices, .. } = row else {
        return String::new();
    };
    let line = |(at, choice): (usize, &String)| format!("{}. {}\n", letter(at), choice.trim());
    choices.iter().enumerate().map(line).collect()
}

fn letter(at: usize) -> String {
    let letter = (b'A'..=b'Z').nth(at).unwrap_or(b'?');
    char::from(letter).to_string()
}

/// Which examples are shown before questions.
#[derive(Debug)]
pub struct Shots<'a> {
    examples: &'a Dataset,
    /// The examples in the order in which they are taken.
    order: Vec<usize>,
    count: usize,
}

impl<'a> Shots<'a> {
    /// `count` examples for each question: the first ones of an order drawn from the stream `shots` of the seed.
    ///
    /// Errors when there are fewer.
    pub fn new(examples: &'a Dataset, count: usize, seed: u64) -> Result<Shots<'a>> {
        if count > examples.len() {
            bail!(
                "`shots` is {count}, and there are {} examples",
                examples.len()
            );
        }
        Ok(Shots {
            examples,
            order: Stream::new(seed, "shots").permutation(examples.len()),
            count,
        })
    }

    /// The examples for a question: always the same ones, but for those that ask what it asks itself.
    pub fn of(&self, row: &Row) -> Result<Vec<Row>> {
        let (own, _) = row.question();
        let mut shots = Vec::with_capacity(self.count);
        for &index in &self.order {
            if shots.len() == self.count {
                break;
            }
            let example = self.examples.row(index)?;
            if example.question().0 != own {
                shots.push(example);
            }
        }
        ensure!(
            shots.len() == self.count,
            "`shots` is {}, and only {} examples ask something else",
            self.count,
            shots.len()
        );
        Ok(shots)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::DatasetWriter;

    fn question(prompt: &str, answer: u32) -> Row {
        Row::Choices {
            prompt: Prompt::Text(prompt.to_owned()),
            choices: vec!["rye".to_owned(), " oat ".to_owned()],
            answer,
        }
    }

    fn manner(template: &str, letters: bool) -> Manner {
        Manner {
            template: template.to_owned(),
            instructions: None,
            letters,
        }
    }

    #[test]
    fn a_question_is_put_as_its_template_says() {
        let asked = manner("Question: {prompt}\nAnswer:", false)
            .ask(&question("Which {prompt}?", 1), &[question("And?", 0)])
            .unwrap();
        let text = "Question: And?\nAnswer: rye\n\nQuestion: Which {prompt}?\nAnswer:";
        assert_eq!(asked.prompt, Prompt::Text(text.to_owned()));
        assert_eq!((asked.gap, asked.right), (" ", 1));
        assert_eq!(asked.choices, ["rye", "oat"]);
        assert_eq!(asked.answer, "oat");
    }

    #[test]
    fn letters_stand_for_choices() {
        let manner = Manner {
            instructions: Some("Choose.".to_owned()),
            ..manner("{prompt}\n{choices}Answer:\n", true)
        };
        let asked = manner.ask(&question("Which?", 1), &[]).unwrap();
        let text = "Choose.\n\nWhich?\nA. rye\nB. oat\nAnswer:\n";
        assert_eq!(asked.prompt, Prompt::Text(text.to_owned()));
        assert_eq!((asked.gap, asked.answer.as_str()), ("", "B"));
        let open = Row::PromptCompletion {
            prompt: "Which?".to_owned(),
            completion: "oat".to_owned(),
        };
        let error = manner.ask(&open, &[]).unwrap_err().to_string();
        assert!(error.contains("no choices"), "{error}");
    }

    #[test]
    fn conversations_are_put_as_turns() {
        let chat = |turns: &[(&str, &str)]| -> Vec<Message> {
            turns.iter().map(|(r, c)| Message::new(*r, *c)).collect()
        };
        let row = |ask: &str, say: &str| Row::Messages {
            messages: chat(&[("system", "Be brief."), ("user", ask), ("assistant", say)]),
        };
        let manner = Manner {
            instructions: Some("You bake.".to_owned()),
            ..manner("unused", false)
        };
        let asked = manner.ask(&row("2+2", "4"), &[row("1+1", "2")]).unwrap();
        let turns = [
            ("system", "You bake.\n\nBe brief."),
            ("user", "1+1"),
            ("assistant", "2"),
            ("user", "2+2"),
        ];
        assert_eq!(asked.prompt, Prompt::Chat(chat(&turns)));
        assert_eq!((asked.gap, asked.answer.as_str()), ("", "4"));
        let open = Row::Messages {
            messages: chat(&[("user", "2+2")]),
        };
        assert!(manner.ask(&open, &[]).is_err());
        let choices = Row::Choices {
            prompt: Prompt::Chat(chat(&[("user", "Which?")])),
            choices: vec!["rye".to_owned(), "oat".to_owned()],
            answer: 0,
        };
        let manner = self::manner("unused", true);
        let asked = manner.ask(&choices, &[]).unwrap();
        let turns = [("user", "Which?\nA. rye\nB. oat")];
        assert_eq!(asked.prompt, Prompt::Chat(chat(&turns)));
    }

    #[test]
    fn shots_are_the_same_for_all_questions_but_never_the_question_itself() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.arrow");
        let rows: Vec<Row> = (0..6).map(|i| question(&format!("{i}?"), 0)).collect();
        let mut writer = DatasetWriter::create(&path, rows[0].layout()).unwrap();
        rows.iter().for_each(|row| writer.push(row).unwrap());
        writer.finish().unwrap();
        let dataset = Dataset::open(&path).unwrap();
        let shots = Shots::new(&dataset, 2, 17).unwrap();
        let stranger = shots.of(&question("another?", 0)).unwrap();
        assert_eq!(stranger.len(), 2);
        for row in &rows {
            let own = shots.of(row).unwrap();
            assert!(own.len() == 2 && !own.contains(row));
            if !stranger.contains(row) {
                assert_eq!(own, stranger);
            }
        }
        let other = (0..20).map(|seed| Shots::new(&dataset, 2, seed).unwrap());
        let others = other.map(|shots| shots.of(&question("another?", 0)).unwrap());
        assert!(others.into_iter().any(|drawn| drawn != stranger));
        let error = Shots::new(&dataset, 7, 17).unwrap_err().to_string();
        assert_eq!(error, "`shots` is 7, and there are 6 examples");
        let all = Shots::new(&dataset, 6, 17).unwrap();
        let error = all.of(&rows[0]).unwrap_err().to_string();
        assert!(error.contains("only 5 examples"), "{error}");
    }
}
