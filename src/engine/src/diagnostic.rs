//! Mistakes in a recipe, with their places, drawn the way rustc draws them.

use std::ops::Range;

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};
use serde::{Deserialize, Serialize};

/// A stretch of one source text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Span {
    /// Which text: 0 is the recipe, 1.. are the `--set` options.
    pub source: usize,
    /// First byte.
    pub start: usize,
    /// One past the last byte.
    pub end: usize,
}

impl Span {
    fn range(self) -> Range<usize> {
        self.start..self.end
    }
}

/// A text that spans point into.
#[derive(Clone, Debug)]
pub struct SourceText {
    /// The file's path, or `--set`.
    pub name: String,
    /// All of it.
    pub text: String,
}

impl SourceText {
    /// One-based line and column (in characters) of a byte offset.
    pub fn position(&self, offset: usize) -> (usize, usize) {
        let before = &self.text[..floor_boundary(&self.text, offset)];
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().map_or(0, |l| l.chars().count()) + 1;
        (line, column)
    }
}

/// A span as people and programs read it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The recipe's file, or `--set`.
    pub file: String,
    /// The line, from 1.
    pub line: usize,
    /// The character in the line, from 1.
    pub column: usize,
    /// First byte in the text.
    pub start: usize,
    /// One past the last byte.
    pub end: usize,
    /// Which `--set` option, from 1; 0, and left out, in the recipe.
    #[serde(default, skip_serializing_if = "is_recipe")]
    pub option: usize,
}

fn is_recipe(option: &usize) -> bool {
    *option == 0
}

impl Place {
    /// The place of a span in these texts; none when it is in none of them.
    pub fn of(span: Span, sources: &[SourceText]) -> Option<Self> {
        let source = sources.get(span.source)?;
        let (line, column) = source.position(span.start);
        Some(Self {
            file: source.name.clone(),
            line,
            column,
            start: span.start,
            end: span.end,
            option: span.source,
        })
    }

    /// The text that stands there, when it is in these texts.
    pub fn text<'a>(&self, sources: &'a [SourceText]) -> Option<&'a str> {
        let source = sources.get(self.option)?;
        source.text.get(self.start..self.end)
    }

    /// The span that it is a place of.
    pub fn span(&self) -> Span {
        Span {
            source: self.option,
            start: self.start,
            end: self.end,
        }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

fn floor_boundary(text: &str, offset: usize) -> usize {
    let mut at = offset.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

/// One mistake.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    /// A stable word for programs, such as `unknown-key`.
    pub code: &'static str,
    /// What is wrong.
    pub message: String,
    /// Where.
    pub span: Option<Span>,
    /// Other places that matter, each with a word.
    pub others: Vec<(Span, String)>,
    /// The way out.
    pub help: Option<String>,
}

impl Problem {
    /// A mistake at a place.
    pub fn at(code: &'static str, span: Span, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            span: Some(span),
            others: Vec::new(),
            help: None,
        }
    }

    /// The same with the way out.
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// The same with the way out, where there is one.
    pub fn maybe_help(mut self, help: Option<String>) -> Self {
        self.help = help;
        self
    }

    /// The same with another place.
    pub fn other(mut self, span: Span, label: impl Into<String>) -> Self {
        self.others.push((span, label.into()));
        self
    }
}

/// All mistakes of a recipe with the texts they point into.
#[derive(Clone, Debug)]
pub struct Problems {
    /// The recipe and the options.
    pub sources: Vec<SourceText>,
    /// The mistakes, in the order of their places.
    pub problems: Vec<Problem>,
}

impl Problems {
    /// Orders the mistakes by place.
    pub fn new(sources: Vec<SourceText>, mut problems: Vec<Problem>) -> Self {
        problems.sort_by_key(|p| p.span.map_or((usize::MAX, 0), |s| (s.source, s.start)));
        problems.dedup();
        Self { sources, problems }
    }

    /// Every mistake drawn, with colours when `color`.
    pub fn render(&self, color: bool) -> String {
        let mut text = String::new();
        for problem in &self.problems {
            text.push_str(&draw(problem, &self.sources, color));
            text.push_str("\n\n");
        }
        let count = self.problems.len();
        text.push_str(&format!(
            "{count} {}\n",
            if count == 1 { "problem" } else { "problems" }
        ));
        text
    }

    /// The mistakes for programs.
    pub fn to_json(&self) -> serde_json::Value {
        let problems: Vec<_> = self
            .problems
            .iter()
            .map(|p| {
                let place = p.span.and_then(|span| Place::of(span, &self.sources));
                serde_json::json!({"code": p.code, "message": p.message, "place": place, "help": p.help})
            })
            .collect();
        serde_json::json!({ "problems": problems })
    }
}

/// One mistake drawn, with colours when `color`; no line break ends it. A span that is in none of the texts is left out.
pub fn draw(problem: &Problem, sources: &[SourceText], color: bool) -> String {
    let renderer = if color {
        Renderer::styled()
    } else {
        Renderer::plain()
    };
    renderer.render(&groups(problem, sources))
}

fn groups<'a>(problem: &'a Problem, sources: &'a [SourceText]) -> Vec<Group<'a>> {
    let title = Level::ERROR
        .primary_title(problem.message.as_str())
        .id(problem.code);
    let mut group = Group::with_title(title);
    let inside = |span: &Span| {
        let source = sources.get(span.source)?;
        source.text.get(span.range()).map(|_| source)
    };
    if let Some(span) = problem.span
        && let Some(source) = inside(&span)
    {
        let mut snippet = Snippet::source(source.text.as_str())
            .path(source.name.as_str())
            .annotation(AnnotationKind::Primary.span(span.range()));
        for (other, label) in problem
            .others
            .iter()
            .filter(|(o, _)| o.source == span.source)
        {
            snippet = snippet.annotation(
                AnnotationKind::Context
                    .span(other.range())
                    .label(label.as_str()),
            );
        }
        group = group.element(snippet);
    }
    if let Some(help) = &problem.help {
        group = group.element(Level::HELP.message(help.as_str()));
    }
    vec![group]
}

impl std::fmt::Display for Problems {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.render(false))
    }
}

impl std::error::Error for Problems {}

/// `did you mean` for the nearest of `words`, if one is near enough to be a slip of the finger.
pub fn nearest<'a>(word: &str, words: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = word.to_lowercase().replace('-', "_");
    words
        .into_iter()
        .map(|w| (distance(&lower, &w.to_lowercase().replace('-', "_")), w))
        .filter(|(d, w)| *d <= (w.chars().count().max(word.chars().count()) / 3).max(1))
        .min_by_key(|(d, _)| *d)
        .map(|(_, w)| w)
}

/// Every word, the nearest to `word` first; words of which it is a part, or which are a part of it, are nearer than others.
pub fn nearest_first<'a>(word: &str, words: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let far = |w: &str| (!w.contains(word) && !word.contains(w), distance(word, w));
    let mut list: Vec<_> = words.into_iter().map(|w| (far(w), w)).collect();
    list.sort_by_key(|(far, _)| *far);
    list.into_iter().map(|(_, w)| w).collect()
}

/// Levenshtein distance with transpositions of neighbours, in characters.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let change = usize::from(a[i - 1] != b[j - 1]);
            let mut best = (rows[i - 1][j] + 1)
                .min(row[j - 1] + 1)
                .min(rows[i - 1][j - 1] + change);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::{Place, Problem, SourceText, Span, draw, nearest};

    #[test]
    fn a_place_is_drawn_again_from_what_was_written_down() {
        let sources = |text: &str| {
            [SourceText {
                name: "r.yaml".to_owned(),
                text: text.to_owned(),
            }]
        };
        let here = sources("a: 1\nbé: { ç: 2 }\n");
        let span = Span {
            source: 0,
            start: 12,
            end: 14,
        };
        let place = Place::of(span, &here).unwrap();
        assert_eq!(place.to_string(), "r.yaml:2:7");
        let written = serde_json::to_string(&place).unwrap();
        assert_eq!(
            written,
            r#"{"file":"r.yaml","line":2,"column":7,"start":12,"end":14}"#
        );
        let read: Place = serde_json::from_str(&written).unwrap();
        assert_eq!((&read, read.span()), (&place, span));
        let problem = Problem::at("stage-failed", read.span(), "`b`: no\nnot at all");
        insta::assert_snapshot!(draw(&problem, &here, false), @r"
        error[stage-failed]: `b`: no
                             not at all
         --> r.yaml:2:7
          |
        2 | bé: { ç: 2 }
          |       ^
        ");
        // A text that is another one by now, or none, is no reason to crash.
        for other in [&sources("")[..], &sources("a: 1\nb:  éééé")[..], &[]] {
            let drawn = draw(&problem, other, false);
            assert!(drawn.contains("not at all") && !drawn.contains("-->"));
        }
        assert_eq!(Place::of(span, &[]), None);
    }

    #[test]
    fn a_slip_is_found_and_a_stranger_is_not() {
        let words = ["learning_rate", "epochs", "data", "model"];
        assert_eq!(nearest("lerning_rate", words), Some("learning_rate"));
        assert_eq!(nearest("learning-rate", words), Some("learning_rate"));
        assert_eq!(nearest("dtaa", words), Some("data"));
        assert_eq!(nearest("banana", words), None);
        let numbers = ["steps", "first_loss", "last_loss", "los"];
        let near = ["los", "last_loss", "first_loss", "steps"];
        assert_eq!(super::nearest_first("loss", numbers), near);
    }
}
