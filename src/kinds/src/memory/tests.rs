//! The sums by hand, and what is known of models that are not there yet.

use super::*;
use serde_json::json;

fn summary(value: Value) -> Summary {
    value.as_object().unwrap().clone().into_iter().collect()
}

fn llama2_7b() -> Summary {
    summary(json!({
        "parameters": 6_738_415_616u64, "dtype": "bf16", "layers": 32, "hidden": 4096, "heads": [32, 32], "vocabulary": 32000,
        "config": {
            "model_type": "llama", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
            "num_attention_heads": 32, "tie_word_embeddings": false,
        },
    }))
}

fn smollm2() -> Summary {
    summary(json!({
        "parameters": 134_515_008u64, "dtype": "bf16", "layers": 30, "hidden": 576, "heads": [9, 3], "vocabulary": 49152,
        "stored": { "Q4_1": 211, "F32": 61 },
        "config": {
            "model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
            "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": true,
        },
    }))
}

/// all-MiniLM-L6-v2.
fn minilm() -> Summary {
    summary(json!({
        "architecture": "bert", "parameters": 22_713_216u64, "dtype": "f32", "pooler": true, "masked_head": false,
        "config": {
            "model_type": "bert", "vocab_size": 30522, "hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6,
            "num_attention_heads": 12, "max_position_embeddings": 512, "type_vocab_size": 2,
        },
    }))
}

fn params(value: Value) -> Map<String, Value> {
    value.as_object().unwrap().clone()
}

fn with(model: &Summary, hook: engine::contract::Foresight, fields: Value) -> Summary {
    hook(&params(fields), &[("model", model)]).unwrap()
}

fn sft(model: &Summary, fields: Value) -> f64 {
    of_rows(&params(fields), &[("model", model)]).unwrap() as f64
}

fn near(found: f64, expected: f64) -> bool {
    (found / expected - 1.0).abs() < 0.005
}

/// The textbook's: NF4 with nested scales, rank 64 on q and v, one row of 512 tokens.
fn qlora(dropout: f64) -> Summary {
    let small = with(
        &llama2_7b(),
        quantized,
        json!({ "scheme": "nf4", "skip": [] }),
    );
    let fields = json!({ "r": 64, "targets": ["q_proj", "v_proj"], "dropout": dropout });
    with(&small, adapted, fields)
}

const ONE_ROW: [(&str, u64); 3] = [("batch", 4), ("micro_batch", 1), ("max_length", 512)];

fn one_row(checkpointing: bool) -> Value {
    let mut fields: Map<String, Value> = ONE_ROW
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.into()))
        .collect();
    fields.insert("checkpointing".to_owned(), checkpointing.into());
    Value::Object(fields)
}

#[test]
fn the_textbooks_qlora_by_hand() {
    let model = qlora(0.0);
    // 6,476,005,376 linear values of 4.126953125 bits, 262,410,240 others of 16.
    assert_eq!(model["bytes"], 3_865_591_808u64);
    // 2 · 32 linears of 4096 + 4096 by 64.
    assert_eq!(model["trainable"], 33_554_432u64);
    let found = sft(&model, one_row(true));
    // program 350, weights 3865.6, adapter 33.6 · 16 = 536.9; of activations 32 states of 4.19, one layer 47.8, the way back
    // through it 53.5, packed rows 33.6 and panels 4.2, in all 273.2 · 1.2.
    assert!(near(found, 5080.3e6), "{found}");
    // Without checkpointing 32 layers of 47.8 stay, and with what goes with the loss that is 1620 · 1.2.
    let found = sft(&model, one_row(false));
    assert!(near(found, 6696.5e6), "{found}");
    // Dropout: in each layer the inputs of both adapters in f32 and in 16 bits, 12 · 4096 · 512 / 2 a linear.
    let more = sft(&qlora(0.1), one_row(false)) - found;
    assert!(near(more, 32.0 * 1.2 * 512.0 * 8192.0 * 6.0), "{more}");
}

#[test]
fn bottlenecks_by_hand() {
    let make = |fields: Value| with(&smollm2(), narrowed, fields);
    let one = make(json!({ "form": "pfeiffer", "reduction_factor": 16.0 }));
    // 30 adapters of 2 · 576 · 36 weights, 36 and 576 biases.
    assert_eq!(one["trainable"], 1_262_520u64);
    let two = make(json!({ "form": "houlsby", "reduction_factor": 16.0 }));
    assert_eq!(two["trainable"], 2_525_040u64);
    assert_eq!((&two["width"], &two["modules"]), (&json!(36), &json!(60)));
    // For each of 512 tokens 30 more adapters keep what they read, and their inside twice, in f32; and there are their numbers.
    let more = sft(&two, one_row(false)) - sft(&one, one_row(false));
    let kept = 1.2 * 30.0 * 512.0 * 4.0 * (576.0 + 2.0 * 36.0);
    assert!(near(more, kept + 1_262_520.0 * 16.0), "{more}");
}

#[test]
fn a_measured_step_is_met() {
    // `make bench-sft`: rank 8 on every linear, 4 rows of 512 tokens; 1.65 GB were measured.
    let thin = with(
        &smollm2(),
        adapted,
        json!({ "r": 8, "targets": "all-linear", "dropout": 0.0 }),
    );
    assert_eq!(thin["trainable"], 2_442_240u64);
    let fields = json!({ "batch": 4, "micro_batch": 4, "max_length": 512 });
    let found = sft(&thin, fields);
    assert!((found / 1.65e9 - 1.0).abs() < 0.05, "{found}");
}

#[test]
fn virtual_tokens_by_hand() {
    let prompt = with(&smollm2(), prompted, json!({ "virtual_tokens": 20 }));
    assert_eq!(prompt["trainable"], 20 * 576);
    // Thirty layers of keys and values of 192.
    let prefix = with(&smollm2(), prefixed, json!({ "virtual_tokens": 20 }));
    assert_eq!(prefix["trainable"], 20 * 30 * 2 * 192);
    let more = sft(&prefix, one_row(false)) - sft(&prompt, one_row(false));
    // Numbers in f32, their gradients and two moments.
    assert!(near(more, 16.0 * (230_400.0 - 11_520.0)), "{more}");
}

#[test]
fn an_adapter_from_outside_is_its_base_and_what_its_files_say() {
    let own = with(
        &smollm2(),
        adapted,
        json!({ "r": 8, "targets": "all-linear", "dropout": 0.0 }),
    );
    let seen =
        summary(json!({ "adapter": "lora", "r": 8, "trainable": 2_442_240u64, "dropout": 0.0 }));
    let base = smollm2();
    let mut found = loaded(&Map::new(), &[("model", &base)]).unwrap();
    // Files that are not here yet tell nothing.
    assert_eq!(found.get(ADAPTER), None);
    found.extend(seen);
    let fields = json!({ "batch": 4, "micro_batch": 4, "max_length": 512 });
    assert_eq!(sft(&found, fields.clone()), sft(&own, fields));
}

#[test]
fn rows_that_are_known_bound_the_tokens() {
    let fields = params(json!({ "batch": 8, "micro_batch": 4, "max_length": 1024 }));
    assert_eq!(tokens(&fields, None, 2.0), Some(8192.0));
    let known = |value| Some(summary(value));
    let few = known(json!({ "rows": 3, "lengths": { "max": 100 } }));
    assert_eq!(tokens(&fields, few.as_ref(), 1.0), Some(300.0));
    let lists =
        known(json!({ "rows": 40, "groups": 8, "largest_group": 5, "lengths": { "max": 2000 } }));
    let expected = 4.0 * 5.0 * 1024.0;
    assert_eq!(tokens(&fields, lists.as_ref(), 2.0), Some(expected));
}

#[test]
fn everything_trained_takes_several_numbers_a_weight() {
    let found = sft(
        &smollm2(),
        json!({ "batch": 1, "micro_batch": 1, "max_length": 2 }),
    );
    // 135 million of 2 bytes, of 2 + 4 + 8 more in training, and the gradient of the head's 28 million: 4 + 4 + 2, times 1.2.
    assert!(found > 350e6 + 134.5e6 * 16.0 + 28.3e6 * 12.0, "{found}");
    assert!(found < 2.9e9, "{found}");
}

#[test]
fn moments_and_frozen_weights_count() {
    let step = |field: &str, value: Value| {
        let mut fields = params(json!({ "batch": 4, "micro_batch": 4, "max_length": 512 }));
        fields.insert(field.to_owned(), value);
        of_rows(&fields, &[("model", &smollm2())]).unwrap() as f64
    };
    let numbers = 134_515_008.0;
    let adamw = step("optimizer", "adamw".into());
    assert_eq!(adamw, step("train", "all".into()));
    let saved = adamw - step("optimizer", "adafactor".into());
    assert!(near(saved, 8.0 * numbers), "{saved}");
    let saved = adamw - step("optimizer", "adamw_8bit".into());
    assert!(near(saved, 5.96875 * numbers), "{saved}");
    // All but 61 norms, and no gradient of the head.
    let head = 1.2 * 10.0 * 49152.0 * 576.0;
    let saved = adamw - step("train", "norms".into());
    let expected = 14.0 * (numbers - 61.0 * 576.0) + head;
    assert!(near(saved, expected), "{saved}");
    // All but one of 30 layers and the last norm; and the 29 layers below keep nothing for a way back.
    let layer = 106_168_320.0 / 30.0 + 3.0 * 576.0;
    let kept = 2048.0 * (4.0 * (576.0 + 576.0 + 192.0 + 1536.0) + 4.0 * 9.0);
    let saved = adamw - step("train", json!({ "last_layers": 1 }));
    let expected = 14.0 * (numbers - layer) + head + 1.2 * 29.0 * kept;
    assert!(near(saved, expected), "{saved}");
}

/// What a step of 32 texts of 256 tokens takes with these fields beside.
fn texts(model: &Summary, more: Value) -> f64 {
    let mut fields = params(json!({ "batch": 32, "micro_batch": 32, "max_length": 256 }));
    fields.extend(params(more));
    of_texts(&fields, &[("model", model)]).unwrap() as f64
}

fn masked(model: &Summary, more: Value) -> Option<u64> {
    let mut fields = params(json!({ "batch": 32, "micro_batch": 32, "max_length": 256 }));
    fields.insert("mask_probability".to_owned(), json!(0.15));
    fields.extend(params(more));
    of_masked(&fields, &[("model", model)])
}

#[test]
fn what_names_match_is_counted() {
    let step = |train: Value| {
        let fields = json!({ "batch": 4, "micro_batch": 4, "max_length": 512, "train": train });
        sft(&smollm2(), fields)
    };
    // Norms of all layers.
    let (norms, few) = (step(json!("norms")), 61.0 * 576.0);
    let kept = 2048.0 * (4.0 * (576.0 + 576.0 + 192.0 + 1536.0) + 4.0 * 9.0);
    let found = step(json!(["q_proj", "o_proj"]));
    let more = 14.0 * (60.0 * 576.0 * 576.0 - few);
    assert!(near(found - norms, more), "{found}");
    // 1.939 GB were measured.
    assert!((found / 1.939e9 - 1.0).abs() < 0.05, "{found}");
    // Layer 2 and layers 20 to 29, so that 0 and 1 keep nothing.
    let found = step(json!(["layers.2*.mlp"]));
    let more = 14.0 * (33.0 * 576.0 * 1536.0 - few) - 1.2 * 2.0 * kept;
    assert!(near(found - norms, more), "{found}");
    let found = step(json!(["model.norm"]));
    let less = 14.0 * (few - 576.0) + 1.2 * 30.0 * kept;
    assert!(near(norms - found, less), "{found}");
    // The embedding makes the logits, too, and is below all layers.
    let found = step(json!(["embed_tokens"]));
    let words = 49152.0 * 576.0;
    let more = 14.0 * (words - few) + 1.2 * 10.0 * words;
    assert!(near(found - norms, more), "{found}");
    let fields =
        params(json!({ "batch": 4, "micro_batch": 4, "max_length": 512, "train": ["qproj"] }));
    assert_eq!(of_rows(&fields, &[("model", &smollm2())]), None);
}

#[test]
fn an_encoder_by_hand() {
    // Program 200 MB, weights 4 · 22,713,216; trained is all but the pooler and the biases of keys, 22,563,072 · 12, and a head of 770 · 16.
    let rest = 200_000_000.0 + 90_852_864.0 + 270_756_864.0 + 12_320.0;
    // For each of 8192 tokens a layer keeps 4 · (9 · 384 + 2 · 1536) + 4 · 16 and loses 4 · 6 · 384; six of them. Then one layer's gradients,
    // 4 · (384 + 2 · 1536), packed rows and panels, and the gradient of the states.
    let layers = 8192.0 * 6.0 * (26_176.0 + 9_216.0);
    let inside = 8192.0 * 13_824.0 + 37_748_736.0;
    let states = 8192.0 * 4.0 * 384.0;
    assert_eq!(texts(&minilm(), json!({})), rest + layers + inside + states);
    // Computed again a layer keeps its state only, and once there is all of it: 4 · (10 · 384 + 2 · 1536) forward.
    let layers = 8192.0 * 6.0 * (1_536.0 + 9_216.0);
    let inside = inside + 8192.0 * (26_176.0 + 27_648.0);
    let found = texts(&minilm(), json!({ "checkpointing": true }));
    assert_eq!(found, rest + layers + inside + states);
    // The head alone: one layer at a time, without a way back.
    let found = texts(&minilm(), json!({ "train": "head" }));
    let forward = 8192.0 * 27_648.0 + 37_748_736.0;
    assert_eq!(found, rest - 270_756_864.0 + forward + states);
    // With the pooler in use, its 147,840 numbers; one more layer of a head, 257 · 2 + 385 · 256 numbers for 770.
    let found = texts(&minilm(), json!({ "pooling": "pooler", "hidden": [256] }));
    let more = 12.0 * 147_840.0 + 16.0 * (514.0 + 98_560.0 - 770.0);
    assert_eq!(found - texts(&minilm(), json!({})), more);
}

#[test]
fn hidden_words_by_hand() {
    let known = with(&minilm(), foreseen::masked, json!({}));
    assert_eq!(known["parameters"], 22_892_346u64);
    // A head of 179,130 numbers comes to what is there and to what is trained.
    let rest = 200e6 + 4.0 * 22_892_346.0 + 12.0 * 22_742_202.0;
    let layers = 8192.0 * 6.0 * (26_176.0 + 9_216.0);
    let inside = 8192.0 * 13_824.0 + 37_748_736.0;
    // Of 1228.8 tokens 384 · (6 · 4 + 4), the embedding with its bias in 4 bytes, 256 rows of logits, and the embedding's gradient twice.
    let states = 1_228.8 * 384.0 * 28.0;
    let words = 30_522.0 * 385.0;
    let loss = states + 4.0 * words + 4.0 * 256.0 * 30_522.0 + 8.0 * words;
    let found = masked(&minilm(), json!({})).unwrap() as f64;
    assert!(
        (found - (rest + layers + inside + loss)).abs() < 2.0,
        "{found}"
    );
    // 2.57 GB were measured.
    assert!((found / 2.57e9 - 1.0).abs() < 0.05, "{found}");
    // Norms do not make logits, biases do: that of words is among them.
    let norms = masked(&minilm(), json!({ "train": "norms" })).unwrap() as f64;
    let biases = masked(&minilm(), json!({ "train": "biases" })).unwrap() as f64;
    // Of 14 norms 384, in each layer four more and 1536, and 384 and 30,522 of the head, against the weights and biases of norms.
    let own = 14.0 * 384.0 + 6.0 * (4.0 * 384.0 + 1_536.0) + 384.0 + 30_522.0;
    let more = 12.0 * (own - 2.0 * 14.0 * 384.0) + 8.0 * words;
    assert!((biases - norms - more).abs() < 2.0, "{biases} {norms}");
}

#[test]
fn an_encoders_adapters_are_met() {
    let of = |dropout: f64| {
        let fields = json!({ "r": 8, "targets": "all-linear", "dropout": dropout });
        let thin = with(&minilm(), adapted, fields);
        // 8 · (4 · (384 + 384) + 2 · (384 + 1536)) in each layer.
        assert_eq!(thin["trainable"], 331_776u64);
        texts(&thin, json!({}))
    };
    let (plain, dropped) = (of(0.0), of(0.1));
    // 1.95 GB and 4.04 GB were measured.
    assert!((plain / 1.947e9 - 1.0).abs() < 0.05, "{plain}");
    assert!((dropped / 4.038e9 - 1.0).abs() < 0.15, "{dropped}");
    // In f32 the inputs, 5 · 384 + 1536, and half as many again as are lost of what comes of them.
    let more = 8192.0 * 6.0 * 4.0 * 2.5 * 3_456.0;
    assert_eq!(dropped - plain, more);
}

#[test]
fn a_head_learns_on_a_quantized_model() {
    let small = with(&smollm2(), quantized, json!({ "scheme": "int8" }));
    let fields = json!({ "batch": 4, "micro_batch": 4, "max_length": 512, "train": "head" });
    let told = |fields: Value| of_texts(&params(fields), &[("model", &small)]);
    let found = told(fields).unwrap() as f64;
    // Codes, scales and 16 bits of the rest; 1154 numbers of the head; no layer keeps anything, and the last states have their gradient.
    let weights = small["bytes"].as_f64().unwrap();
    assert!(found > 350e6 + weights + 1_154.0 * 16.0, "{found}");
    assert!(found < 350e6 + weights + 100e6, "{found}");
    let whole = json!({ "batch": 4, "micro_batch": 4, "max_length": 512, "train": "all" });
    assert_eq!(told(whole), None);
}

#[test]
fn where_rows_are_short_the_optimizers_step_is_the_largest() {
    let step = |optimizer: &str| {
        let fields =
            json!({ "batch": 1, "micro_batch": 1, "max_length": 2, "optimizer": optimizer });
        sft(&smollm2(), fields)
    };
    // The embedding's four copies in f32.
    let passing = 16.0 * 49152.0 * 576.0;
    let expected = 350e6 + 134_515_008.0 * (2.0 + 2.0 + 4.0) + passing;
    assert!(near(step("adafactor"), expected), "{}", step("adafactor"));
}

#[test]
fn what_is_not_known_is_not_told() {
    let fields = params(one_row(true));
    assert_eq!(of_rows(&fields, &[]), None);
    let small = with(&smollm2(), quantized, json!({ "scheme": "int8" }));
    assert_eq!(of_rows(&fields, &[("model", &small)]), None);
    // An encoder predicts no next words, and gives no rewards; a language model has no mask.
    let encoder = minilm();
    assert_eq!(of_rows(&fields, &[("model", &encoder)]), None);
    assert_eq!(of_scores(&fields, &[("model", &encoder)]), None);
    assert_eq!(masked(&smollm2(), json!({})), None);
    let mut less = smollm2();
    less.remove(CONFIGURATION);
    assert_eq!(of_rows(&fields, &[("model", &less)]), None);
}

#[test]
fn what_the_recipe_says_is_known_of_models_that_are_not_here() {
    let made = |hook: engine::contract::Foresight, fields: Value, known: &[(&str, &Summary)]| {
        hook(&params(fields), known).unwrap()
    };
    let here = made(bare, json!({}), &[]);
    let small = made(
        quantized,
        json!({ "scheme": "nf4", "skip": [] }),
        &[("model", &here)],
    );
    assert_eq!(
        small,
        summary(json!({ "adapter": null, "quantized": "nf4" }))
    );
    let lora = json!({ "r": 8, "targets": "all-linear", "dropout": 0.1 });
    let thin = made(adapted, lora, &[("model", &small)]);
    let expected = json!({ "adapter": "lora", "quantized": "nf4", "r": 8, "dropout": 0.1 });
    assert_eq!(thin, summary(expected));
    for fields in [
        json!({ "into": "dequantized" }),
        json!({ "into": "full_precision" }),
    ] {
        let plain = made(merged, fields, &[("model", &thin), ("base", &here)]);
        assert_eq!(
            plain,
            summary(json!({ "adapter": null, "quantized": null }))
        );
    }
    // Merged it has the memory of a model that never had an adapter.
    let fields = json!({ "r": 8, "targets": "all-linear", "dropout": 0.0 });
    let thin = with(&smollm2(), adapted, fields);
    let plain = with(&thin, merged, json!({ "into": "full_precision" }));
    let step = json!({ "batch": 1, "micro_batch": 1, "max_length": 2 });
    assert_eq!(sft(&plain, step.clone()), sft(&smollm2(), step));
}

#[test]
fn patterns_are_whole_parts_and_stars_are_anything() {
    let thin = |targets: Value| {
        let fields = json!({ "r": 8, "targets": targets, "dropout": 0.0 });
        with(&smollm2(), adapted, fields)["trainable"]
            .as_u64()
            .unwrap()
    };
    let of = |out: u64, input: u64| 8 * (out + input);
    assert_eq!(thin(json!("mlp.*_proj")), 30 * 3 * of(576, 1536));
    assert_eq!(
        thin(json!(["layers.2", "1*.q_proj"])),
        thin(json!("all-linear")) / 30 + 11 * of(576, 576)
    );
    assert_eq!(thin(json!(["proj", "*x*"])), 0);
    assert_eq!(thin(json!("l*s.3.*.q*j")), of(576, 576));
}

#[test]
fn bytes_of_schemes() {
    let bytes = |fields: Value| {
        with(&smollm2(), quantized, fields)["bytes"]
            .as_u64()
            .unwrap() as f64
    };
    let (linear, rest) = (106_168_320.0, 28_346_688.0 * 2.0);
    let plain = bytes(json!({ "scheme": "nf4", "double_quant": false }));
    assert!(near(plain, linear * 4.5 / 8.0 + rest), "{plain}");
    let nested = bytes(json!({ "scheme": "nf4", "block": 128 }));
    let bits = 4.0 + 8.125 / 128.0;
    assert!(near(nested, linear * bits / 8.0 + rest), "{nested}");
    let rows = 30.0 * (576.0 * 3.0 + 192.0 * 2.0 + 1536.0 * 2.0);
    let eight = bytes(json!({ "scheme": "int8" }));
    assert!(near(eight, linear + 4.0 * rows + rest), "{eight}");
    let fewer = bytes(json!({ "scheme": "int8", "skip": ["down_proj", "3.mlp.up_proj"] }));
    assert!(
        near(fewer - eight, 31.0 * (576.0 * 1536.0 - 4.0 * 576.0)),
        "{fewer}"
    );
}

#[test]
fn encoders_keep_their_facts() {
    let bert = summary(
        json!({ "architecture": "bert", "adapter": null, "quantized": null, "masked_head": false, "parameters": 40 }),
    );
    let fields = json!({ "scheme": "nf4", "skip": [] });
    let expected =
        json!({ "architecture": "bert", "adapter": null, "quantized": "nf4", "masked_head": true });
    let headed = with(&bert, foreseen::masked, json!({}));
    assert_eq!(headed["masked_head"], true);
    assert_eq!(headed.get("parameters"), None);
    let small = with(&headed, quantized, fields);
    assert_eq!(small, summary(expected));
    // The head was there.
    assert_eq!(with(&small, foreseen::masked, json!({})), small);
    let thin = with(
        &small,
        adapted,
        json!({ "r": 8, "targets": "all-linear", "dropout": 0.0 }),
    );
    assert_eq!(
        (&thin["adapter"], &thin["quantized"]),
        (&json!("lora"), &json!("nf4"))
    );
}
