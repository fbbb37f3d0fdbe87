//! What the rows of all kinds work on: files, a judge at an address, and the stages before theirs.

use crate::support::endpoint::{Endpoint, Reply};
use crate::support::{Kitchen, tiny};

/// A kitchen with all that the rows name.
pub fn kitchen() -> Kitchen {
    let kitchen = Kitchen::new(0);
    tiny::model(&kitchen, "model");
    tiny::model(&kitchen, "other");
    for name in ["adapter", "adapter2", "adapter3"] {
        tiny::adapter(&kitchen, name);
    }
    let settings = kitchen.path().join("adapter2/adapter_config.json");
    let settings = std::fs::read_to_string(settings).unwrap();
    let settings = settings.replace("\"lora_alpha\": 10", "\"lora_alpha\": 20");
    kitchen.write("adapter2/adapter_config.json", &settings);
    // Made for a base that nobody has here.
    let nobody = "0".repeat(64);
    kitchen.write(
        "adapter3/levain_base.json",
        &format!("{{\"artifact\": \"{nobody}\", \"weights\": [\"{nobody}\"]}}"),
    );
    let config = std::fs::read_to_string(kitchen.path().join("other/config.json")).unwrap();
    kitchen.write("other/config.json", &config.replace("100000.0", "50000.0"));
    for name in ["rewards", "rewards2"] {
        tiny::reward_model(&kitchen, name);
    }
    tiny::encoder(&kitchen, "bert");
    for (name, labels) in [
        ("sorter", ["bread", "number", "question"]),
        ("sorter2", ["question", "number", "bread"]),
    ] {
        tiny::classifier(&kitchen, name, &labels);
    }
    tiny::lone_head(&kitchen, "lone", &["bread", "number", "question"]);
    kitchen.write(
        "rewards2/config.json",
        &config.replace("100000.0", "50000.0"),
    );
    kitchen.write("chats.jsonl", &tiny::chats(12));
    let sum = |i: usize| {
        format!(
            "{{\"prompt\": \"How much or how many is {i} + 1?\", \"completion\": \"{}\"}}\n",
            i + 1
        )
    };
    kitchen.write("reviews.csv", tiny::REVIEWS);
    kitchen.write("texts.jsonl", &tiny::texts(12));
    kitchen.write("marks.jsonl", &tiny::marks(12));
    kitchen.write("sums.jsonl", &(0..8).map(sum).collect::<String>());
    kitchen.write("more.jsonl", &(0..9).map(sum).collect::<String>());
    let preference = |i: usize| {
        format!(
            "{{\"prompt\": \"How many is {i} + 1?\", \"chosen\": \" It is {} loaves\", \"rejected\": \" bread {i}{}\", \"margin\": 0.{}}}\n",
            i + 1,
            " and bread".repeat(i % 3),
            i + 1
        )
    };
    kitchen.write("prefs.jsonl", &(0..8).map(preference).collect::<String>());
    let ranking = |i: usize| {
        format!(
            "{{\"prompt\": \"How many is {i} + 1?\", \"completions\": [\" {}\", \" many loaves\", \" bread {i}\"]}}\n",
            i + 1
        )
    };
    kitchen.write("ranks.jsonl", &(0..8).map(ranking).collect::<String>());
    let like = |i: usize| {
        format!(
            "{{\"prompt\": \"How many is {} + 1?\", \"completion\": \" {} loaves{}\", \"label\": {}}}\n",
            i / 2,
            i + 1,
            " and bread".repeat(i % 3),
            !i.is_multiple_of(3)
        )
    };
    kitchen.write("likes.jsonl", &(0..8).map(like).collect::<String>());
    // What a model learns to write by heart has two lines, and what is wanted is the first of them in other words.
    let asked = |i: usize, answer: &str| {
        format!("{{\"prompt\": \"How many is {i} + 1?\", \"completion\": \"{answer}\"}}\n")
    };
    let of_all = |answer: &str| (0..8).map(|i| asked(i, answer)).collect::<String>();
    kitchen.write("lines.jsonl", &of_all("4\\nloaves"));
    kitchen.write("echoes.jsonl", &of_all("The 4!"));
    let quiz = |i: usize| {
        format!(
            "{{\"question\": \"Which {i}?\", \"choices\": [\"rye\", \"oat {i}\", \"a loaf\"], \"answer\": {}}}\n",
            i % 3
        )
    };
    kitchen.write("quiz.jsonl", &(0..6).map(quiz).collect::<String>());
    let lexicon = |sign: i32| -> String {
        let letter = |c: u8| format!("{}\t{}\n", c as char, sign * (i32::from(c % 7) - 3));
        (b'a'..=b'z').map(letter).collect::<String>() + "loaf\t2.5\n"
    };
    kitchen.write("lexicon.txt", &lexicon(1));
    kitchen.write("other.txt", &lexicon(-1));
    // A judge that rates by length; another number, or another file, rates otherwise.
    let judge = |factor: usize| {
        format!(
            "import json, sys\nfor line in sys.stdin:\n    question = json.loads(line)\n    score = {factor} * len(question[\"completion\"]) * \
             int((sys.argv + [\"1\"])[1]) % 9 + 1\n    print(json.dumps({{\"id\": question[\"id\"], \"score\": score}}))\n"
        )
    };
    kitchen.write("judge.py", &judge(1));
    kitchen.write("other.py", &judge(2));
    kitchen.write(
        "both.jsonl",
        "{\"text\": \"a\", \"prompt\": \"b\", \"completion\": \"c\"}\n",
    );
    kitchen
}

/// A judge whose answers depend on every byte that it is sent, and on the address.
pub fn endpoint() -> Endpoint {
    Endpoint::start(|asked| {
        let digest = blake3::hash(format!("{} {}", asked.path, asked.body).as_bytes());
        let drawn = usize::from(digest.as_bytes()[0]);
        let verdict = match asked.prompt().contains("[Answer]\n") {
            true => (3 + drawn % 7).to_string(),
            false => ["A", "B", "TIE"][drawn % 3].to_owned(),
        };
        Reply::Says(format!("{digest}\n{verdict}"))
    })
}

/// The stages that the rows name.
pub const SHARED: &str = "\
levain: 1
seed: 17
threads: 1
stages:
  base: { kind: load_model, source: model, dtype: f32 }
  chats: { kind: load_dataset, source: chats.jsonl }
  sums: { kind: load_dataset, source: sums.jsonl }
  reviews: { kind: load_dataset, source: reviews.csv, format: labelled }
  thin: { kind: lora, model: base, r: 4, dropout: 0.1 }
  bent: { kind: sft, model: thin, data: chats, batch: 4, max_steps: 3, learning_rate: 1.0e-2 }
  packed: { kind: quantize, model: base }
  slim: { kind: lora, model: packed, r: 2 }
  other: { kind: load_model, source: other, dtype: f32 }
  bert: { kind: load_model, source: bert, dtype: f32 }
  headed: { kind: masked_lm, model: bert, data: reviews, train: head, batch: 2, max_steps: 3, learning_rate: 1.0e-2 }
  prefs: { kind: load_dataset, source: prefs.jsonl, format: preference }
  ranks: { kind: load_dataset, source: ranks.jsonl, format: ranking }
  likes: { kind: load_dataset, source: likes.jsonl, format: unpaired }
  quiz: { kind: load_dataset, source: quiz.jsonl }
  lines: { kind: load_dataset, source: lines.jsonl }
  echoes: { kind: load_dataset, source: echoes.jsonl }
  parrot: { kind: sft, model: base, data: lines, learning_rate: 1.0e-2, batch: 4, epochs: 20 }
  texts: { kind: load_dataset, source: texts.jsonl, format: labelled }
  marks: { kind: load_dataset, source: marks.jsonl, format: labelled }
  vectors: { kind: features, model: base, data: texts }
  marked: { kind: features, model: base, data: marks }
  probe: { kind: head, data: vectors, max_steps: 4 }
  sorted: { kind: classifier, model: thin, data: texts, max_steps: 2, learning_rate: 1.0e-2 }
  words: { kind: rule, lexicon: lexicon.txt }
  brief: { kind: rule, length: 2 }
  tries: { kind: generate, model: base, prompts: sums, n: 4, temperature: 1.5, max_new_tokens: 12 }
  scorer: { kind: reward_model, model: thin, data: prefs, max_steps: 1 }
  scores: { kind: evaluate, models: { base: base, other: other }, data: chats }
  rated: { kind: evaluate, models: { base: base, other: other }, data: chats, judge: words, reference: base, max_new_tokens: 8 }
  picks: { kind: best_of_n, samples: tries, proxy: words, gold: brief }
  swapped: { kind: best_of_n, samples: tries, proxy: brief, gold: words }
";
