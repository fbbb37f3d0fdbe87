//! Broken, lying and random files: a clear error that names the file, never a panic, never much memory.

mod support;

use levain_formats::{LlamaConfig, TokenizerFiles, Weights, gguf, safetensors};
use proptest::prelude::*;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::path::{Path, PathBuf};
use support::{GgufBytes, Meta, golden, safetensors_bytes};

/// Counts what each thread holds, so that tests may run side by side.
struct Counting;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(change: isize) {
    let held = HELD.get() + change;
    HELD.set(held);
    PEAK.set(PEAK.get().max(held));
}

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        unsafe { System.dealloc(place, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A file in a folder of its own, which lives as long as it.
struct Written(tempfile::TempDir, PathBuf);

fn write(name: &str, bytes: &[u8]) -> Written {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    Written(folder, path)
}

/// Opens the bytes under this name and reads everything; returns the error, which must name the file.
fn open_all(name: &str, bytes: &[u8]) -> Result<(), String> {
    let file = write(name, bytes);
    let path = file.1.as_path();
    HELD.set(0);
    PEAK.set(0);
    let opened = Weights::open(path);
    let allowed = 32 * bytes.len() as isize + 65536;
    assert!(
        PEAK.get() < allowed,
        "{} bytes for a file of {}",
        PEAK.get(),
        bytes.len()
    );
    let weights = opened.map_err(|error| {
        let message = format!("{error:#}");
        assert!(message.contains(&*path.to_string_lossy()), "{message}");
        message
    })?;
    for info in weights.infos() {
        HELD.set(0);
        PEAK.set(0);
        let _ = weights.read_f32(&info.name);
        let _ = weights.bytes(&info.name);
        assert!(
            PEAK.get() < allowed,
            "{} bytes for {}",
            PEAK.get(),
            info.name
        );
    }
    if let Some(file) = weights.gguf() {
        let _ = LlamaConfig::from_gguf(file).map(|config| config.check(&weights));
        let _ = TokenizerFiles::from_gguf(file);
    }
    Ok(())
}

fn gguf_error(file: &GgufBytes) -> String {
    open_all("model.gguf", &file.build()).expect_err("it was accepted")
}

#[track_caller]
fn assert_says(message: &str, words: &[&str]) {
    for word in words {
        assert!(message.contains(word), "{word:?} is not in: {message}");
    }
}

const TWO: &str = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"U8","shape":[3],"data_offsets":[8,11]}}"#;

#[test]
fn every_truncation_is_an_error() {
    let bytes = GgufBytes::small().build();
    open_all("model.gguf", &bytes).unwrap();
    for length in 0..bytes.len() {
        open_all("model.gguf", &bytes[..length]).expect_err("a part was accepted");
    }
    let bytes = safetensors_bytes(TWO, &[0; 11]);
    open_all("model.safetensors", &bytes).unwrap();
    for length in 0..bytes.len() {
        open_all("model.safetensors", &bytes[..length]).expect_err("a part was accepted");
    }
    let real = std::fs::read(golden("tiny.gguf")).unwrap();
    for length in (0..real.len()).step_by(997).chain([real.len() - 1]) {
        open_all("model.gguf", &real[..length]).expect_err("a part was accepted");
    }
}

#[test]
fn lying_gguf_headers_are_refused_with_the_place() {
    let small = GgufBytes::small;
    let huge = 1u64 << 60;
    let with = |change: fn(&mut GgufBytes)| {
        let mut file = small();
        change(&mut file);
        gguf_error(&file)
    };
    assert_says(
        &with(|f| f.tensor_count = Some(1 << 60)),
        &["1152921504606846976 tensors", "room"],
    );
    assert_says(&with(|f| f.pair_count = Some(1 << 60)), &["metadata pairs"]);
    assert_says(&with(|f| f.tensor_count = Some(u64::MAX)), &["tensors"]);
    assert_says(&with(|f| f.version = 1), &["version 1", "2 and 3"]);
    assert_says(&with(|f| f.version = 3 << 24), &["big-endian"]);
    assert_says(
        &with(|f| f.tensors[0].2 = 12),
        &["output_norm.weight", "Q4_K", "Q4_1, Q8_0"],
    );
    assert_says(&with(|f| f.tensors[0].2 = 999), &["ggml type 999"]);
    assert_says(&with(|f| f.tensors[0].1 = vec![]), &["0 dimensions"]);
    assert_says(&with(|f| f.tensors[0].1 = vec![1; 5]), &["5 dimensions"]);
    assert_says(
        &with(|f| f.tensors[0].1 = vec![1 << 60, 1 << 60]),
        &["larger than any file"],
    );
    assert_says(
        &with(|f| f.tensors[0].1 = vec![0, 1 << 60, 1 << 60]),
        &["larger than any file"],
    );
    assert_says(
        &with(|f| f.tensors[0].1 = vec![1 << 40]),
        &["the file has", "cut short"],
    );
    assert_says(
        &with(|f| f.tensors[1].1 = vec![33, 4]),
        &["33 numbers", "blocks of 32"],
    );
    assert_says(
        &with(|f| f.tensors[1].1 = vec![32, 3]),
        &["3 rows", "2 heads"],
    );
    assert_says(
        &with(|f| f.tensors[1].0 = "output_norm.weight".into()),
        &["twice"],
    );
    assert_says(
        &with(|f| f.tensors[1].0 = "model.norm.weight".into()),
        &["two tensors", "model.norm.weight"],
    );
    assert_says(
        &with(|f| f.offsets = Some(vec![0, 0])),
        &["overlap", "attn_q"],
    );
    assert_says(&with(|f| f.offsets = Some(vec![0, 96])), &["overlap"]);
    assert_says(
        &with(|f| f.offsets = Some(vec![0, 129])),
        &["129", "multiple of 32"],
    );
    assert_says(
        &with(|f| f.offsets = Some(vec![0, 1 << 40])),
        &["cut short"],
    );
    assert_says(
        &with(|f| f.offsets = Some(vec![0, u64::MAX - 31])),
        &["beyond every file"],
    );
    assert_says(
        &with(|f| f.metadata.push(f.metadata[0].clone())),
        &["general.architecture", "twice"],
    );

    let set = |value: Meta| gguf_error(&small().set("x", value));
    let raw = |kind: u32, parts: &[&[u8]]| set(Meta::Raw(kind, parts.concat()));
    let (long, texts) = (huge.to_le_bytes(), 8u32.to_le_bytes());
    assert_says(
        &raw(8, &[&long]),
        &["metadata \"x\"", "1152921504606846976 bytes"],
    );
    assert_says(
        &raw(9, &[&texts, &long]),
        &["metadata \"x\"", "1152921504606846976 texts"],
    );
    assert_says(&raw(9, &[&0u32.to_le_bytes(), &long]), &["numbers"]);
    assert_says(
        &raw(9, &[&12u32.to_le_bytes(), &(huge << 1).to_le_bytes()]),
        &["numbers"],
    );
    assert_says(&raw(13, &[]), &["unknown type 13"]);
    assert_says(
        &raw(9, &[&77u32.to_le_bytes(), &1u64.to_le_bytes()]),
        &["unknown type 77"],
    );
    assert_says(&raw(8, &[&1u64.to_le_bytes(), &[0xff]]), &["not UTF-8"]);
    let nested = [&9u32.to_le_bytes()[..], &1u64.to_le_bytes()]
        .concat()
        .repeat(1000);
    assert_says(&raw(9, &[&nested]), &["nested"]);
    let alignment = |value| gguf_error(&small().set("general.alignment", value));
    assert_says(&alignment(Meta::U32(0)), &["power of two"]);
    assert_says(&alignment(Meta::U32(48)), &["power of two"]);
    assert_says(&alignment(Meta::Text("32")), &["power of two"]);
    let architecture = small().set("general.architecture", Meta::Text("qwen2"));
    assert_says(&gguf_error(&architecture), &["qwen2", "llama"]);
    assert_says(
        &open_all("model.gguf", b"PK\x03\x04 zip").unwrap_err(),
        &["GGUF"],
    );
    assert_says(&open_all("model.gguf", b"").unwrap_err(), &["empty"]);
}

#[test]
fn nested_arrays_within_reason_are_read() {
    let inner = [&0u32.to_le_bytes()[..], &3u64.to_le_bytes(), &[1, 2, 3]].concat();
    let list = [&9u32.to_le_bytes()[..], &2u64.to_le_bytes(), &inner, &inner].concat();
    let bytes = GgufBytes::small().set("x", Meta::Raw(9, list)).build();
    let file = write("model.gguf", &bytes);
    let opened = gguf::File::open(&file.1).unwrap();
    let bytes = gguf::Array::U8(vec![1, 2, 3]);
    let expected = gguf::Value::Array(gguf::Array::Array(vec![bytes.clone(), bytes]));
    assert_eq!(opened.metadata()["x"], expected);
}

#[test]
fn broken_gguf_models_are_refused_by_name() {
    let config = |file: GgufBytes| {
        let file = write("model.gguf", &file.build());
        let opened = gguf::File::open(&file.1).unwrap();
        format!("{:#}", LlamaConfig::from_gguf(&opened).unwrap_err())
    };
    let tokenizer = |file: GgufBytes| {
        let file = write("model.gguf", &file.build());
        let opened = gguf::File::open(&file.1).unwrap();
        format!("{:#}", TokenizerFiles::from_gguf(&opened).unwrap_err())
    };
    let texts = |list: &[&str]| Meta::Texts(list.iter().map(|t| (*t).to_owned()).collect());
    let set = |key: &str, value: Meta| GgufBytes::small().set(key, value);
    assert_says(
        &config(set("llama.embedding_length", Meta::Text("576"))),
        &["whole number", "model.gguf"],
    );
    assert_says(
        &config(set("llama.block_count", Meta::U32(u32::MAX))),
        &["num_hidden_layers"],
    );
    assert_says(
        &config(set("llama.attention.head_count", Meta::U32(0))),
        &["heads"],
    );
    assert_says(
        &config(set("llama.attention.head_count_kv", Meta::U32(0))),
        &["num_key_value_heads"],
    );
    assert_says(
        &config(set("llama.rope.dimension_count", Meta::U32(7))),
        &["even"],
    );
    assert_says(
        &config(set("llama.expert_count", Meta::U32(8))),
        &["experts"],
    );
    assert_says(
        &config(set("llama.rope.scaling.type", Meta::Text("yarn"))),
        &["yarn"],
    );
    assert_says(
        &config(set(
            "llama.attention.layer_norm_rms_epsilon",
            Meta::F32(f32::NAN),
        )),
        &["rms_norm_eps"],
    );
    assert_says(
        &tokenizer(set("tokenizer.ggml.model", Meta::Text("llama"))),
        &["\"llama\"", "gpt2", "model.gguf"],
    );
    assert_says(
        &tokenizer(set("tokenizer.ggml.pre", Meta::Text("deepseek-coder"))),
        &["deepseek-coder", "smollm"],
    );
    assert_says(
        &tokenizer(set("tokenizer.ggml.merges", texts(&["a c"]))),
        &["merge 0", "\"c\""],
    );
    assert_says(
        &tokenizer(set("tokenizer.ggml.merges", texts(&["a  b"]))),
        &["merge 0", "two tokens"],
    );
    assert_says(
        &tokenizer(set("tokenizer.ggml.merges", texts(&["ab"]))),
        &["two tokens"],
    );
    assert_says(
        &tokenizer(set("tokenizer.ggml.tokens", texts(&["a", "b", "ab", "a"]))),
        &["0 and 3"],
    );
    assert_says(
        &tokenizer(set("tokenizer.ggml.token_type", Meta::I32s(vec![1; 3]))),
        &["expected 4"],
    );
    assert_says(
        &tokenizer(set("tokenizer.ggml.eos_token_id", Meta::U32(4))),
        &["eos_token_id is 4", "4 tokens"],
    );
    assert_says(
        &tokenizer(set("tokenizer.ggml.tokens", Meta::U32(4))),
        &["list of texts"],
    );
}

#[test]
fn lying_safetensors_headers_are_refused_by_name() {
    let error = |header: &str, data: usize| {
        open_all(
            "model.safetensors",
            &safetensors_bytes(header, &vec![0; data]),
        )
        .unwrap_err()
    };
    let one = |dtype: &str, shape: &str, offsets: &str, data: usize| {
        let entry = format!(r#"{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}"#);
        error(&format!(r#"{{"w":{entry}}}"#), data)
    };
    assert_says(
        &one("F32", "[2]", "[0,8]", 7),
        &["\"w\"", "0..8", "7 bytes"],
    );
    assert_says(&one("F32", "[2]", "[0,8]", 9), &["1 bytes after"]);
    assert_says(&one("F32", "[3]", "[0,8]", 8), &["needs 12 bytes", "has 8"]);
    assert_says(&one("F32", "[2]", "[8,0]", 8), &["8..0"]);
    assert_says(&one("F32", "[2]", "[4,12]", 12), &["hole of 4"]);
    assert_says(
        &one("F32", "[2]", "[0,18446744073709551615]", 8),
        &["cut short"],
    );
    assert_says(
        &one(
            "F32",
            "[1152921504606846976,1152921504606846976]",
            "[0,8]",
            8,
        ),
        &["larger"],
    );
    assert_says(
        &one(
            "F32",
            "[0,1152921504606846976,1152921504606846976]",
            "[0,0]",
            0,
        ),
        &["larger"],
    );
    assert_says(&one("F32", "[-2]", "[0,8]", 8), &["\"w\"", "-2"]);
    assert_says(&one("F32", "[2.0]", "[0,8]", 8), &["\"w\""]);
    assert_says(
        &one("F8_E4M3", "[8]", "[0,8]", 8),
        &["\"w\"", "F8_E4M3", "BF16"],
    );
    let entry = r#"{"dtype":"U8","shape":[4],"data_offsets":[0,4]}"#;
    assert_says(
        &error(&format!(r#"{{"w":{entry},"w":{entry}}}"#), 4),
        &["\"w\" stands twice"],
    );
    let other = r#"{"dtype":"U8","shape":[4],"data_offsets":[2,6]}"#;
    assert_says(
        &error(&format!(r#"{{"w":{entry},"v":{other}}}"#), 6),
        &["\"v\"", "overlaps"],
    );
    assert_says(
        &error(r#"{"w":{"dtype":"U8","shape":[1]}}"#, 1),
        &["\"w\"", "data_offsets"],
    );
    assert_says(
        &error(
            r#"{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":1}}"#,
            1,
        ),
        &["`x`", "unknown"],
    );
    assert_says(&error(r#"{"__metadata__":{"a":1}}"#, 0), &["line 1"]);
    assert_says(&error("[]", 0), &["'{'"]);
    assert_says(&error("{", 0), &["header"]);
    let deep = format!(r#"{{"w":{}"#, "[".repeat(100_000));
    error(&deep, 0);
    let open = |bytes: &[u8]| open_all("model.safetensors", bytes).unwrap_err();
    assert_says(
        &open(&u64::MAX.to_le_bytes()),
        &["18446744073709551615", "at most"],
    );
    assert_says(
        &open(&(1u64 << 26).to_le_bytes()),
        &["67108864", "cut short"],
    );
    assert_says(&open(&[2, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xfe]), &["not UTF-8"]);
    assert_says(&open(b"abc"), &["3 bytes"]);
}

#[test]
fn folders_are_read_by_their_index_and_never_left() {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| folder.path().join(name);
    let one = |name: &str, value: u8| {
        let entry = format!(r#"{{"{name}":{{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}}}"#);
        safetensors_bytes(&entry, &[value])
    };
    std::fs::write(place("m-1.safetensors"), one("a", 7)).unwrap();
    std::fs::write(place("m-2.safetensors"), one("b", 8)).unwrap();
    let index = |map: &str| {
        let text = format!(r#"{{"metadata":{{}},"weight_map":{map}}}"#);
        std::fs::write(place("model.safetensors.index.json"), text).unwrap();
        Weights::open(folder.path())
    };
    let weights = index(r#"{"a":"m-1.safetensors","b":"m-2.safetensors"}"#).unwrap();
    assert_eq!(
        (weights.bytes("a").unwrap(), weights.bytes("b").unwrap()),
        (&[7][..], &[8][..])
    );
    let error = |map: &str| format!("{:#}", index(map).unwrap_err());
    assert_says(
        &error(r#"{"a":"../m-1.safetensors"}"#),
        &["inside the model's folder"],
    );
    assert_says(
        &error(r#"{"a":"/etc/x.safetensors"}"#),
        &["inside the model's folder"],
    );
    assert_says(
        &error(r#"{"a":"..\\x.safetensors"}"#),
        &["inside the model's folder"],
    );
    assert_says(
        &error(r#"{"a":"m-3.safetensors"}"#),
        &["m-3.safetensors", "missing"],
    );
    assert_says(
        &error(r#"{"a":"m-2.safetensors"}"#),
        &["\"a\"", "not there"],
    );
    assert_says(
        &error(r#"{"a":"m-1.safetensors","a":"m-2.safetensors"}"#),
        &["twice"],
    );
    assert_says(&error("{}"), &["empty"]);
    std::fs::write(place("m-2.safetensors"), one("a", 8)).unwrap();
    let both = error(r#"{"a":"m-1.safetensors","b":"m-2.safetensors"}"#);
    assert_says(&both, &["another shard", "\"a\""]);

    std::fs::remove_file(place("model.safetensors.index.json")).unwrap();
    assert_says(
        &format!("{:#}", Weights::open(folder.path()).unwrap_err()),
        &["several", "m-1"],
    );
    let pickled = write("pytorch_model.bin", b"x");
    assert_says(
        &format!("{:#}", Weights::open(pickled.0.path()).unwrap_err()),
        &["pickled"],
    );
    assert!(Weights::open(Path::new("/no/such/file.gguf")).is_err());
    let pairs = [("model.safetensors".to_owned(), place("m-1.safetensors"))];
    assert_eq!(
        Weights::open_files(&pairs).unwrap().bytes("a").unwrap(),
        [7]
    );
}

#[test]
fn a_model_that_does_not_fit_its_config_is_told_all_at_once() {
    let weights = Weights::open(&golden("tiny.gguf")).unwrap();
    let mut config = LlamaConfig::from_gguf(weights.gguf().unwrap()).unwrap();
    config.num_hidden_layers = 1;
    config.intermediate_size = 64;
    config.attention_bias = true;
    let message = config.check(&weights).unwrap_err().to_string();
    assert_says(
        &message,
        &[
            "tiny.gguf",
            "model.layers.0.mlp.gate_proj.weight has the shape [32, 32], expected [64, 32]",
            "model.layers.0.self_attn.q_proj.bias is missing",
            "model.layers.1.input_layernorm.weight of shape [32] is not expected",
            "more",
        ],
    );
}

/// Bytes of a valid file with a few places overwritten, and a new length.
fn mutated(valid: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    let length = valid.len();
    let interesting = prop_oneof![
        any::<u8>().prop_map(|byte| vec![byte]),
        any::<u32>().prop_map(|word| word.to_le_bytes().to_vec()),
        prop_oneof![
            Just(0u64),
            Just(1 << 60),
            Just(u64::MAX),
            Just(1 << 31),
            any::<u64>()
        ]
        .prop_map(|word| word.to_le_bytes().to_vec()),
    ];
    let changes = prop::collection::vec((0..length, interesting), 1..4);
    (changes, prop::option::of(0..length)).prop_map(move |(changes, cut)| {
        let mut bytes = valid.clone();
        for (place, new) in changes {
            let end = (place + new.len()).min(bytes.len());
            bytes[place..end].copy_from_slice(&new[..end - place]);
        }
        bytes.truncate(cut.unwrap_or(length));
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn mutated_gguf_files_never_panic(bytes in mutated(GgufBytes::small().build())) {
        let _ = open_all("model.gguf", &bytes);
    }

    #[test]
    fn mutated_safetensors_files_never_panic_and_agree_with_the_reference(
        bytes in mutated(safetensors_bytes(TWO, &[9; 11]))
    ) {
        if open_all("model.safetensors", &bytes).is_ok() {
            let reference = ::safetensors::SafeTensors::deserialize(&bytes);
            prop_assert!(reference.is_ok(), "the reference refuses: {:?}", reference.err());
            let file = write("model.safetensors", &bytes);
            let ours = safetensors::File::open(&file.1).unwrap();
            let reference = reference.unwrap();
            prop_assert_eq!(ours.entries().len(), reference.len());
            for entry in ours.entries() {
                let view = reference.tensor(&entry.name).unwrap();
                prop_assert_eq!(view.shape(), &entry.shape[..]);
                prop_assert_eq!(view.data(), ours.bytes(entry).unwrap());
            }
        }
    }

    #[test]
    fn random_bytes_never_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..200), gguf in any::<bool>()
    ) {
        let (name, start) = if gguf {
            ("model.gguf", b"GGUF\x03\0\0\0".to_vec())
        } else {
            ("model.safetensors", (bytes.len() as u64).to_le_bytes().to_vec())
        };
        let _ = open_all(name, &[start, bytes].concat());
    }
}
