//! Toy kinds: every feature of a contract, on texts of a few bytes.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use engine::artifact::{ArtifactType, ArtifactView};
use engine::contract::{
    Arity, Choice, Class, Contract, Contracts, Field, FieldType, From, Literal, Need, Output, Pool,
    Port, Preparation, Repeatable, no_check,
};
use engine::job::{
    About as _, Draft, Drafts, Implementation, Input, Job, Reference, Reporter, Waiting,
};

use super::control::{self, BLEND, CHANGE, LONGEST, PASS, TRIALS, WEIGH, WEIGH_ALL};

pub(super) const fn field(name: &'static str, ty: FieldType, need: Need) -> Field {
    Field {
        name,
        ty,
        need,
        neutral: None,
        class: Class::Semantic,
        extendable: false,
        doc: "a word about it",
    }
}

const fn of_class(class: Class, name: &'static str, default: i64) -> Field {
    let ty = FieldType::Integer {
        min: 0,
        max: 1 << 30,
    };
    Field {
        name,
        ty,
        need: Need::Default(Literal::Integer(default)),
        neutral: None,
        class,
        extendable: false,
        doc: "a number",
    }
}

const fn port(name: &'static str, arity: Arity) -> Port {
    Port {
        name,
        accepts: &[ArtifactType::Dataset],
        arity,
        layouts: &[],
        doc: "a text",
    }
}

const fn output(name: &'static str) -> Output {
    Output::new(name, ArtifactType::Dataset, "a text")
}

const TEXT: &[Output] = &[output("text")];
const DATA: &[Port] = &[port("data", Arity::One)];
const MODEL: Port = Port {
    name: "model",
    accepts: &[ArtifactType::Model],
    arity: Arity::One,
    layouts: &[],
    doc: "a model",
};

pub(super) const fn toy(
    kind: &'static str,
    fields: &'static [Field],
    ports: &'static [Port],
    outputs: &'static [Output],
) -> Contract {
    Contract {
        kind,
        version: 1,
        about: "A toy.",
        manual: "",
        example: "",
        pool: Pool::Cpu,
        repeatable: Repeatable::Deterministic,
        fields,
        ports,
        outputs,
        preparations: &[],
        layout: None,
        check: no_check,
        check_inputs: None,
        memory: None,
    }
}

const MOODS: FieldType = FieldType::Choice(&[
    Choice {
        word: "calm",
        doc: "as it is",
    },
    Choice {
        word: "loud",
        doc: "in capitals",
    },
]);
const SAY_FIELDS: &[Field] = &[
    field("text", FieldType::Text, Need::Required),
    field("mood", MOODS, Need::Default(Literal::Text("calm"))),
    of_class(Class::Numeric, "chunk", 1),
    of_class(Class::Execution, "pace", 1),
    field("seed", FieldType::Seed, Need::Optional),
];
/// A later version of the program: a new field, which changes nothing at its neutral value.
const SAY_FIELDS_LATER: &[Field] = &[
    field("text", FieldType::Text, Need::Required),
    field("mood", MOODS, Need::Default(Literal::Text("calm"))),
    of_class(Class::Numeric, "chunk", 1),
    of_class(Class::Execution, "pace", 1),
    field("seed", FieldType::Seed, Need::Optional),
    Field {
        name: "times",
        ty: FieldType::Integer { min: 1, max: 9 },
        need: Need::Default(Literal::Integer(1)),
        neutral: Some(Literal::Integer(1)),
        class: Class::Semantic,
        extendable: false,
        doc: "how often",
    },
];

/// A text, as it is or in capitals.
const SAY: Contract = toy("say", SAY_FIELDS, &[], TEXT);
const SAY_LATER: Contract = toy("say", SAY_FIELDS_LATER, &[], TEXT);
const SAY_NEWER: Contract = Contract {
    version: 2,
    ..toy("say", SAY_FIELDS, &[], TEXT)
};
/// A file from outside.
const READ: Contract = toy(
    "read",
    &[field("source", FieldType::Source, Need::Required)],
    &[],
    TEXT,
);
/// A file from outside, which it writes to while it reads.
const SCRIBBLE: Contract = toy(
    "scribble",
    &[field("source", FieldType::Source, Need::Required)],
    &[],
    TEXT,
);
/// Texts one after the other, each with its name.
const JOIN: Contract = toy("join", &[], &[port("parts", Arity::Many)], TEXT);
/// Small letters: many texts become the same.
const LOWER: Contract = toy("lower", &[], DATA, TEXT);
/// Rows as they are, in the same layout.
const KEEP: Contract = Contract {
    layout: Some(|_, of| of("data")),
    ..toy("keep", &[], DATA, TEXT)
};
/// Takes rows of one layout only.
const SWEET: Contract = toy(
    "sweet",
    &[],
    &[Port {
        layouts: &["sweet"],
        ..port("data", Arity::One)
    }],
    TEXT,
);
/// The first half and the second.
const HALVES: Contract = toy("halves", &[], DATA, &[output("left"), output("right")]);
const FAIL: Contract = toy("fail", &[], &[port("data", Arity::Optional)], TEXT);
const CRASH: Contract = toy("crash", &[], &[], TEXT);
/// Does not make what its contract says.
const LIE: Contract = toy("lie", &[], &[], TEXT);
const SLOW: Contract = toy(
    "slow",
    &[
        field("text", FieldType::Text, Need::Required),
        of_class(Class::Execution, "milliseconds", 300),
    ],
    &[],
    TEXT,
);
/// Waits until a person has written into the file; the answer is recorded.
const ASK: Contract = Contract {
    repeatable: Repeatable::Recorded,
    ..toy(
        "ask",
        &[
            field("question", FieldType::Text, Need::Required),
            field("answer", FieldType::Text, Need::Required),
        ],
        &[],
        TEXT,
    )
};
/// A computation that can be continued.
const LONG: Contract = toy(
    "long",
    &[
        Field {
            extendable: true,
            ..of_class(Class::Semantic, "steps", 10)
        },
        field(
            "rate",
            FieldType::Number {
                min: 0.0,
                max: 1.0,
                above: true,
            },
            Need::Default(Literal::Number(0.5)),
        ),
    ],
    &[],
    TEXT,
);
/// A model with its tokenizer.
const MAKE: Contract = toy(
    "make",
    &[
        field("weights", FieldType::Text, Need::Required),
        field(
            "alphabet",
            FieldType::Text,
            Need::Default(Literal::Text("abc")),
        ),
    ],
    &[],
    &[Output::new("model", ArtifactType::Model, "a model")],
);
/// A model trained on rows, which are tokenized in a preparation that waits for no training.
const TUNE: Contract = Contract {
    preparations: &[Preparation {
        name: "tokens",
        kind: "cut",
        inputs: &[
            ("tokenizer", From::TokenizerOf("model")),
            ("data", From::Port("data")),
        ],
        fields: &["length"],
        replaces: &["data"],
    }],
    ..toy(
        "tune",
        &[
            field(
                "rate",
                FieldType::Number {
                    min: 0.0,
                    max: 1.0,
                    above: true,
                },
                Need::Default(Literal::Number(0.5)),
            ),
            field(
                "length",
                FieldType::Integer { min: 1, max: 100 },
                Need::Default(Literal::Integer(8)),
            ),
        ],
        &[MODEL, port("data", Arity::One)],
        &[Output::new("model", ArtifactType::Model, "a model").keeps_tokenizer_of("model")],
    )
};
/// Rows as tokens.
const CUT: Contract = toy(
    "cut",
    &[field(
        "length",
        FieldType::Integer { min: 1, max: 100 },
        Need::Required,
    )],
    &[
        Port {
            name: "tokenizer",
            accepts: &[ArtifactType::Tokenizer],
            arity: Arity::One,
            layouts: &[],
            doc: "a tokenizer",
        },
        port("data", Arity::One),
    ],
    &[Output::new("tokens", ArtifactType::Tokens, "tokens")],
);

/// All toys.
pub fn contracts() -> Contracts {
    Contracts {
        kinds: &[
            &SAY, &READ, &SCRIBBLE, &JOIN, &LOWER, &HALVES, &FAIL, &CRASH, &LIE, &SLOW, &ASK,
            &LONG, &MAKE, &TUNE, &KEEP, &SWEET, &WEIGH, &WEIGH_ALL, &PASS, &LONGEST, &CHANGE,
            &BLEND,
        ],
        hidden: &[&CUT],
        trials: TRIALS,
    }
}

/// The toys of a later program, in which `say` has one more field.
pub fn later() -> Contracts {
    Contracts {
        kinds: &[&SAY_LATER, &LOWER, &JOIN],
        hidden: &[],
        trials: &[],
    }
}

/// The toys of a program in which `say` works differently.
pub fn newer() -> Contracts {
    Contracts {
        kinds: &[&SAY_NEWER, &LOWER, &JOIN],
        hidden: &[],
        trials: &[],
    }
}

/// How the toys run.
pub const IMPLEMENTATIONS: &[Implementation] = &[
    Implementation {
        kind: "say",
        run: say,
    },
    Implementation {
        kind: "read",
        run: read,
    },
    Implementation {
        kind: "scribble",
        run: scribble,
    },
    Implementation {
        kind: "join",
        run: join,
    },
    Implementation {
        kind: "lower",
        run: lower,
    },
    Implementation {
        kind: "halves",
        run: halves,
    },
    Implementation {
        kind: "fail",
        run: |_, _| bail!("it fails, as it should"),
    },
    Implementation {
        kind: "crash",
        run: |_, _| panic!("it crashes, as it should"),
    },
    Implementation {
        kind: "lie",
        run: |_, _| Ok(Drafts::new()),
    },
    Implementation {
        kind: "slow",
        run: slow,
    },
    Implementation {
        kind: "ask",
        run: ask,
    },
    Implementation {
        kind: "long",
        run: long,
    },
    Implementation {
        kind: "make",
        run: make,
    },
    Implementation {
        kind: "tune",
        run: tune,
    },
    Implementation {
        kind: "cut",
        run: cut,
    },
    Implementation {
        kind: "weigh",
        run: control::weigh,
    },
    Implementation {
        kind: "weigh_all",
        run: control::weigh_all,
    },
    Implementation {
        kind: "pass",
        run: control::pass,
    },
    Implementation {
        kind: "longest",
        run: control::longest,
    },
    Implementation {
        kind: "change",
        run: control::change,
    },
];

fn draft(job: &Job, artifact: ArtifactType, name: &str, text: &str) -> Result<Draft> {
    let path = job.out.join(format!("{name}.txt"));
    fs::write(&path, text)?;
    let summary = [("bytes".to_owned(), text.len().into())].into();
    Ok(Draft {
        artifact,
        files: vec![(format!("{name}.txt"), path)],
        refs: BTreeMap::new(),
        summary,
    })
}

fn texts<const N: usize>(job: &Job, outputs: [(&str, &str); N]) -> Result<Drafts> {
    outputs
        .into_iter()
        .map(|(name, text)| {
            Ok((
                name.to_owned(),
                draft(job, ArtifactType::Dataset, name, text)?,
            ))
        })
        .collect()
}

fn content(view: &ArtifactView) -> Result<String> {
    Ok(fs::read_to_string(&view.files[0].1)?)
}

fn word<'a>(job: &'a Job, name: &str) -> &'a str {
    job.params
        .get(name)
        .and_then(|v| v.as_str())
        .unwrap_or_default()
}

fn say(job: &Job, _: &dyn Reporter) -> Result<Drafts> {
    let text = if word(job, "mood") == "loud" {
        word(job, "text").to_uppercase()
    } else {
        word(job, "text").to_owned()
    };
    let times = job
        .params
        .get("times")
        .and_then(|v| v.as_u64())
        .unwrap_or(1) as usize;
    texts(job, [("text", &text.repeat(times))])
}

fn read(job: &Job, _: &dyn Reporter) -> Result<Drafts> {
    texts(
        job,
        [("text", &fs::read_to_string(&job.source("source")?[0].path)?)],
    )
}

fn scribble(job: &Job, _: &dyn Reporter) -> Result<Drafts> {
    let path = &job.source("source")?[0].path;
    let text = fs::read_to_string(path)?;
    fs::File::options()
        .append(true)
        .open(path)?
        .write_all(b"!")?;
    texts(job, [("text", &text)])
}

fn join(job: &Job, _: &dyn Reporter) -> Result<Drafts> {
    let mut all = String::new();
    for (name, view) in job.inputs_of("parts")? {
        all.push_str(&format!("{name}={}\n", content(view)?));
    }
    texts(job, [("text", &all)])
}

fn lower(job: &Job, _: &dyn Reporter) -> Result<Drafts> {
    texts(
        job,
        [("text", &content(job.input("data")?)?.to_lowercase())],
    )
}

fn halves(job: &Job, _: &dyn Reporter) -> Result<Drafts> {
    let text = content(job.input("data")?)?;
    let (left, right) = text.split_at(text.len() / 2);
    texts(job, [("left", left), ("right", right)])
}

fn slow(job: &Job, cx: &dyn Reporter) -> Result<Drafts> {
    let wait = Duration::from_millis(job.params["milliseconds"].as_u64().unwrap_or(0));
    let start = Instant::now();
    while start.elapsed() < wait {
        cx.check()?;
        std::thread::sleep(Duration::from_millis(5));
    }
    texts(job, [("text", word(job, "text"))])
}

fn ask(job: &Job, _: &dyn Reporter) -> Result<Drafts> {
    let path = std::path::Path::new(word(job, "answer"));
    match fs::read_to_string(path) {
        Ok(answer) => texts(job, [("text", &answer)]),
        Err(_) => Err(Waiting {
            reason: format!("answer `{}` and run again", word(job, "question")),
        }
        .into()),
    }
}

fn long(job: &Job, _: &dyn Reporter) -> Result<Drafts> {
    texts(
        job,
        [(
            "text",
            &format!("{} {}", job.params["steps"], job.params["rate"]),
        )],
    )
}

fn make(job: &Job, _: &dyn Reporter) -> Result<Drafts> {
    let tokenizer = draft(
        job,
        ArtifactType::Tokenizer,
        "alphabet",
        word(job, "alphabet"),
    )?;
    let mut model = draft(job, ArtifactType::Model, "weights", word(job, "weights"))?;
    model.refs.insert(
        "tokenizer".to_owned(),
        Reference::Inline(Box::new(tokenizer)),
    );
    Ok([("model".to_owned(), model)].into())
}

fn tune(job: &Job, _: &dyn Reporter) -> Result<Drafts> {
    let model = job.input("model")?;
    let Some(Input::One(tokens)) = job.inputs.get("tokens") else {
        bail!("the tokens are missing")
    };
    let text = format!(
        "{} + {} × {}",
        content(model)?,
        job.params["rate"],
        content(tokens)?
    );
    let mut tuned = draft(job, ArtifactType::Model, "weights", &text)?;
    tuned
        .refs
        .insert("base".to_owned(), Reference::Artifact(model.digest));
    tuned.refs.insert(
        "tokenizer".to_owned(),
        Reference::Artifact(model.reference("tokenizer")?.digest),
    );
    Ok([("model".to_owned(), tuned)].into())
}

fn check_rows(rows: &str) -> Result<()> {
    ensure!(rows != "stale", "these rows can't be cut");
    Ok(())
}

fn check_length(rows: &str, length: usize) -> Result<()> {
    let fits = rows != "odd" || length % 2 == 1;
    ensure!(fits, "odd rows have an odd length, not {length}");
    Ok(())
}

fn cut(job: &Job, _: &dyn Reporter) -> Result<Drafts> {
    let alphabet = content(job.input("tokenizer")?)?;
    let length = job.params["length"].as_u64().unwrap_or(0) as usize;
    let rows = content(job.input("data")?)?;
    check_rows(&rows).about("data")?;
    check_length(&rows, length).about("length")?;
    let text: String = rows
        .chars()
        .filter(|c| alphabet.contains(*c))
        .take(length)
        .collect();
    Ok([(
        "tokens".to_owned(),
        draft(job, ArtifactType::Tokens, "tokens", &text)?,
    )]
    .into())
}
