//! Fields that several kinds share, so that one word means one thing.

use engine::artifact::ArtifactType;
use engine::contract::{Arity, Choice, Class, Field, FieldType, Literal, Need, Port};
use serde_json::{Map, Value};

/// A semantic field.
pub(crate) const fn field(
    name: &'static str,
    ty: FieldType,
    need: Need,
    doc: &'static str,
) -> Field {
    Field {
        name,
        ty,
        need,
        neutral: None,
        class: Class::Semantic,
        extendable: false,
        doc,
    }
}

/// A semantic field that was added to a kind: at its default it changes nothing, and no key.
pub(crate) const fn added(
    name: &'static str,
    ty: FieldType,
    default: Literal,
    doc: &'static str,
) -> Field {
    Field {
        name,
        ty,
        need: Need::Default(default),
        neutral: Some(default),
        class: Class::Semantic,
        extendable: false,
        doc,
    }
}

/// A field that changes the last bits only.
pub(crate) const fn numeric(
    name: &'static str,
    ty: FieldType,
    need: Need,
    doc: &'static str,
) -> Field {
    Field {
        name,
        ty,
        need,
        neutral: None,
        class: Class::Numeric,
        extendable: false,
        doc,
    }
}

/// A field that changes nothing in the result.
pub(crate) const fn execution(
    name: &'static str,
    ty: FieldType,
    need: Need,
    doc: &'static str,
) -> Field {
    Field {
        name,
        ty,
        need,
        neutral: None,
        class: Class::Execution,
        extendable: false,
        doc,
    }
}

/// A whole number from `min` on.
pub(crate) const fn count(min: i64) -> FieldType {
    FieldType::Integer { min, max: i64::MAX }
}

/// A number from 0 to 1.
pub(crate) const FRACTION: FieldType = FieldType::Number {
    min: 0.0,
    max: 1.0,
    above: false,
};

/// A number that is not negative.
pub(crate) const NOT_NEGATIVE: FieldType = FieldType::Number {
    min: 0.0,
    max: f64::INFINITY,
    above: false,
};

/// Any number.
pub(crate) const NUMBER: FieldType = FieldType::Number {
    min: f64::NEG_INFINITY,
    max: f64::INFINITY,
    above: false,
};

/// A number greater than 0.
pub(crate) const POSITIVE: FieldType = FieldType::Number {
    min: 0.0,
    max: f64::INFINITY,
    above: true,
};

/// A learning rate. AdamW and Adafactor move every number by about the rate in a step, and the numbers of a model are mostly below 1. The largest
/// rates that are published are those of soft prompts, 0.3 (Lester et al., arXiv 2104.08691); what is above 1 is a slip, as 2e4 for 2e-4 is.
pub(crate) const RATE: FieldType = FieldType::Number {
    min: 0.0,
    max: 1.0,
    above: true,
};

/// Complaints about the list in the field `name`: what stands in it twice does nothing the second time.
pub(crate) fn twice(
    params: &Map<String, Value>,
    name: &'static str,
) -> Vec<(&'static str, String)> {
    let Some(list) = params.get(name).and_then(Value::as_array) else {
        return Vec::new();
    };
    let again = list.iter().enumerate().find(|(index, value)| {
        let before = &list[..*index];
        before.contains(value)
    });
    again
        .map(|(_, value)| (name, format!("{value} stands twice in `{name}`")))
        .into_iter()
        .collect()
}

/// The words of `tokenize`, which every kind that reads tokens hands on.
pub(crate) const TOKENIZE_FIELDS: [&str; 3] = ["max_length", "truncation", "loss_on"];

/// The words of `tokenize_completions`.
pub(crate) const COMPLETION_FIELDS: [&str; 2] = ["max_length", "truncation"];

/// The words of `tokenize_pieces`.
pub(crate) const PIECE_FIELDS: [&str; 1] = ["max_length"];

/// The longest piece of a text, in tokens.
pub(crate) const PIECE_LENGTH: Field = field(
    "max_length",
    FieldType::Integer {
        min: 3,
        max: 1 << 20,
    },
    Need::Default(Literal::Integer(256)),
    "The longest row in tokens, special ones included; longer texts are cut into pieces, and nothing of them is lost.",
);

/// How many tokens are to be told.
pub(crate) const MASK_PROBABILITY: Field = field(
    "mask_probability",
    FieldType::Number {
        min: 0.0,
        max: 1.0,
        above: true,
    },
    Need::Default(Literal::Number(0.15)),
    "The probability that a token is chosen to be told.",
);

/// The longest row, in tokens.
pub(crate) const MAX_LENGTH: Field = field(
    "max_length",
    FieldType::Integer {
        min: 2,
        max: 1 << 20,
    },
    Need::Default(Literal::Integer(1024)),
    "The longest row in tokens; what `truncation` says happens to longer ones.",
);

/// What happens to rows that are too long.
pub(crate) const TRUNCATION: Field = field(
    "truncation",
    FieldType::Choice(&[
        Choice {
            word: "keep_start",
            doc: "the end is cut off",
        },
        Choice {
            word: "keep_end",
            doc: "the start is cut off",
        },
        Choice {
            word: "drop",
            doc: "the row is left out",
        },
    ]),
    Need::Default(Literal::Text("keep_start")),
    "What happens to rows longer than `max_length`; how many is always said.",
);

/// Which tokens count.
pub(crate) const LOSS_ON: Field = field(
    "loss_on",
    FieldType::Choice(&[
        Choice {
            word: "completions",
            doc: "what the assistant says, its end-of-turn token included",
        },
        Choice {
            word: "last_turn",
            doc: "only the last thing the assistant says",
        },
        Choice {
            word: "all",
            doc: "every token",
        },
    ]),
    Need::Default(Literal::Text("completions")),
    "Which tokens the loss is taken on. A row of plain text always counts whole.",
);

/// Rows a forward pass takes at once.
pub(crate) const MICRO_BATCH: Field = numeric(
    "micro_batch",
    FieldType::Integer { min: 1, max: 65536 },
    Need::Default(Literal::Integer(4)),
    "Rows that go through the model at once: less needs less memory, and changes the last bits only.",
);

/// Sampling, shared by whoever generates.
pub(crate) const MAX_NEW_TOKENS: Field = field(
    "max_new_tokens",
    FieldType::Integer { min: 1, max: 65536 },
    Need::Default(Literal::Integer(64)),
    "The longest answer in tokens.",
);

/// See `MAX_NEW_TOKENS`.
pub(crate) const TEMPERATURE: Field = field(
    "temperature",
    FieldType::Number {
        min: 0.0,
        max: 100.0,
        above: false,
    },
    Need::Default(Literal::Number(0.0)),
    "0 takes the likeliest token every time (greedy); above, tokens are drawn from softmax(logits / temperature).",
);

/// A port that takes an artifact of any type.
pub(crate) const fn any(name: &'static str, arity: Arity, doc: &'static str) -> Port {
    Port {
        name,
        accepts: ArtifactType::ALL,
        arity,
        layouts: &[],
        doc,
    }
}

/// What turns texts into token ids.
pub(crate) const TOKENIZER: Port = Port {
    name: "tokenizer",
    accepts: &[ArtifactType::Tokenizer],
    arity: Arity::One,
    layouts: &[],
    doc: "The tokenizer.",
};

/// A port that takes metrics; its words are to be given.
pub(crate) const METRICS: Port = Port {
    name: "metrics",
    accepts: &[ArtifactType::Metrics],
    arity: Arity::One,
    layouts: &[],
    doc: "Where the numbers are.",
};

/// Names of metrics that are always the same.
pub(crate) fn words(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// Names of metrics that each of several has: `tuned.loss`.
pub(crate) fn each(owners: &[String], names: &[&str]) -> Vec<String> {
    let of = |owner: &String| -> Vec<String> {
        let own = names.iter().map(|name| format!("{owner}.{name}"));
        own.collect()
    };
    owners.iter().flat_map(of).collect()
}
