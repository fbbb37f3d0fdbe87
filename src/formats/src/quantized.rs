//! How quantized weights stand in model files, as transformers and bitsandbytes write them: the names beside a weight's, the state in JSON,
//! and `quantization_config` in config.json.

mod described;
mod sound;
mod values;

pub(crate) use described::check_config;
pub use described::{check_described, config, config_with, config_without, unconverted};
pub use values::values;

use crate::nf4::{self, Quantized, Scales};
use crate::tensors::{Stored, Weights};
use crate::{Dtype, peft};
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value, json};

/// The state's name after the weight's.
const STATE: &str = "quant_state.bitsandbytes__nf4";
/// What may follow the name of a weight.
const NF4_PARTS: [&str; 5] = [
    "absmax",
    "quant_map",
    "nested_absmax",
    "nested_quant_map",
    STATE,
];
/// What may stand in the place of `weight` beside an int8 one.
const INT8_PARTS: [&str; 2] = ["SCB", "weight_format"];
/// The longest state that is read, in bytes.
const MAXIMUM_STATE: usize = 1 << 16;

/// How the linears of a model are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// Four bits.
    Nf4,
    /// Eight bits, a scale for each row.
    Int8,
}

/// What a file says of a linear's weight.
#[derive(Debug, Clone, PartialEq)]
pub enum Linear {
    /// Its numbers stand there as such.
    Dense,
    /// NF4, with its settings.
    Nf4(State),
    /// int8 of `[out, in]` with the largest magnitude of each row.
    Int8,
}

/// The settings of one NF4 weight.
#[derive(Debug, Clone, PartialEq)]
pub struct State {
    /// Values to a scale.
    pub block: usize,
    /// The type of the weight before, to which a value is rounded.
    pub dtype: Dtype,
    /// Outputs and inputs.
    pub shape: [usize; 2],
    /// With double quantization: scales to a scale of theirs, and what is added to each.
    pub nested: Option<(usize, f64)>,
}

/// The name of a part of the weight `name`.
pub fn part(name: &str, part: &str) -> String {
    format!("{name}.{part}")
}

/// The name beside an int8 weight's: `…q_proj.SCB` for `…q_proj.weight`.
pub fn beside(name: &str, part: &str) -> String {
    format!("{}.{part}", name.strip_suffix(".weight").unwrap_or(name))
}

/// The names that may belong to a quantized weight beside its own.
pub fn parts(name: &str) -> impl Iterator<Item = String> + '_ {
    let nf4 = NF4_PARTS.iter().map(move |word| part(name, word));
    nf4.chain(INT8_PARTS.iter().map(move |word| beside(name, word)))
}

/// Those that do belong to a weight that is stored so.
pub(crate) fn own_parts(name: &str, stored: &Linear) -> Vec<String> {
    match stored {
        Linear::Dense => Vec::new(),
        Linear::Int8 => INT8_PARTS.iter().map(|word| beside(name, word)).collect(),
        Linear::Nf4(state) => (NF4_PARTS.iter())
            .filter(|word| state.nested.is_some() || !word.starts_with("nested"))
            .map(|word| part(name, word))
            .collect(),
    }
}

impl State {
    /// The content of the state's tensor: JSON as Python writes it.
    pub fn to_bytes(&self) -> Vec<u8> {
        let [out, input] = self.shape;
        let nested = self.nested.map_or_else(String::new, |(block, offset)| {
            format!(
                ", \"nested_blocksize\": {block}, \"nested_dtype\": \"float32\", \"nested_offset\": {}",
                python_float(offset)
            )
        });
        format!(
            "{{\"quant_type\": \"nf4\", \"blocksize\": {}, \"dtype\": \"{}\", \"shape\": [{out}, {input}]{nested}}}",
            self.block,
            torch_name(self.dtype)
        )
        .into_bytes()
    }

    /// Reads the state of a weight that should be `[out, in]`; every lie about shapes is an error.
    fn parse(bytes: &[u8], shape: [usize; 2]) -> Result<State> {
        ensure!(
            bytes.len() <= MAXIMUM_STATE,
            "its state has {} bytes",
            bytes.len()
        );
        let text = std::str::from_utf8(bytes).context("its state is not UTF-8")?;
        let object: Map<String, Value> =
            serde_json::from_str(text).context("its state is no JSON")?;
        let kind = object.get("quant_type").and_then(Value::as_str);
        ensure!(
            kind == Some("nf4"),
            "its state says the quant_type {:?}; supported is \"nf4\"",
            kind.unwrap_or("none")
        );
        let count = |key: &str| -> Result<usize> {
            let value = object
                .get(key)
                .with_context(|| format!("its state says no {key}"))?;
            let number = value
                .as_u64()
                .and_then(|number| usize::try_from(number).ok());
            number.with_context(|| format!("its state says {key} is {value}, not a whole number"))
        };
        let block = count("blocksize")?;
        ensure!(
            nf4::BLOCKS.contains(&block),
            "its state says blocks of {block} values; known are {:?}",
            nf4::BLOCKS
        );
        let dtype = match object.get("dtype").and_then(Value::as_str) {
            Some("bfloat16") => Dtype::BF16,
            Some("float16") => Dtype::F16,
            Some("float32") => Dtype::F32,
            other => {
                bail!(
                    "its state says the dtype {:?}; known are bfloat16, float16, float32",
                    other.unwrap_or("none")
                )
            }
        };
        let said = object.get("shape").cloned().unwrap_or_default();
        ensure!(
            said == json!(shape),
            "its state says the shape {said}, but the model's config asks for {shape:?}"
        );
        let nested = match object.get("nested_blocksize") {
            None => None,
            Some(_) => {
                let offset = object.get("nested_offset").and_then(Value::as_f64);
                let offset = offset
                    .filter(|offset| offset.is_finite())
                    .context("its state says no nested_offset, the mean of its scales")?;
                let block = count("nested_blocksize")?;
                ensure!(block > 0, "its state says nested blocks of 0 scales");
                let kind = object.get("nested_dtype").and_then(Value::as_str);
                ensure!(
                    kind.is_none_or(|kind| kind == "float32"),
                    "its state says the nested_dtype {:?}; supported is float32",
                    kind.unwrap_or("none")
                );
                Some((block, offset))
            }
        };
        Ok(State {
            block,
            dtype,
            shape,
            nested,
        })
    }
}

/// What comes before the reason why a weight can't be read.
fn unreadable(weights: &Weights, name: &str) -> String {
    let paths = weights.paths();
    let shown = paths
        .first()
        .map_or_else(String::new, |path| format!("{}: ", path.display()));
    format!("{shown}the weight {name:?} can't be read")
}

/// How the weight `name` of a linear `[out, in]` is stored. All parts are there with their types and lengths, or it is an error that says
/// what does not fit.
pub fn linear(weights: &Weights, name: &str, shape: [usize; 2]) -> Result<Linear> {
    let fail = || unreadable(weights, name);
    let Some(info) = weights.get(name) else {
        bail!("{}: it is missing", fail());
    };
    let count = shape[0] * shape[1];
    let expect = |name: &str, dtype: Dtype, length: usize| -> Result<()> {
        let info = weights
            .get(name)
            .with_context(|| format!("{name:?} is missing"))?;
        let found = info.shape.iter().product::<usize>();
        ensure!(
            info.stored == Stored::Plain(dtype) && found == length,
            "{name:?} holds {found} numbers of {}, expected are {length} of {dtype}",
            info.stored.name()
        );
        Ok(())
    };
    let found = match info.stored {
        Stored::Plain(Dtype::U8) => nf4_state(weights, name, shape).and_then(|state| {
            let blocks = count.div_ceil(state.block);
            expect(name, Dtype::U8, count.div_ceil(2))?;
            expect(&part(name, "quant_map"), Dtype::F32, 16)?;
            match state.nested {
                None => expect(&part(name, "absmax"), Dtype::F32, blocks)?,
                Some((block, _)) => {
                    expect(&part(name, "absmax"), Dtype::U8, blocks)?;
                    expect(
                        &part(name, "nested_absmax"),
                        Dtype::F32,
                        blocks.div_ceil(block),
                    )?;
                    expect(&part(name, "nested_quant_map"), Dtype::F32, 256)?;
                }
            }
            Ok(Linear::Nf4(state))
        }),
        Stored::Plain(Dtype::I8) => {
            let fits = info.shape == shape;
            let shown = info.shape.clone();
            expect(&beside(name, "SCB"), Dtype::F32, shape[0]).and_then(|()| {
                ensure!(
                    fits,
                    "it has the shape {shown:?}, but the model's config asks for {shape:?}"
                );
                Ok(Linear::Int8)
            })
        }
        _ => Ok(Linear::Dense),
    };
    found.with_context(fail)
}

/// The same for a file from outside, whose scales and tables are looked at as well.
pub(crate) fn sound_linear(weights: &Weights, name: &str, shape: [usize; 2]) -> Result<Linear> {
    let found = linear(weights, name, shape)?;
    sound::check(weights, name, &found).with_context(|| unreadable(weights, name))?;
    Ok(found)
}

fn nf4_state(weights: &Weights, name: &str, shape: [usize; 2]) -> Result<State> {
    if weights
        .get(&part(name, "quant_state.bitsandbytes__fp4"))
        .is_some()
    {
        bail!(
            "it is stored as FP4; supported is NF4: quantize the model again with bnb_4bit_quant_type \"nf4\""
        );
    }
    let state = part(name, STATE);
    ensure!(
        weights.get(&state).is_some(),
        "it is stored as bytes, but there is no {state:?} that says what they are"
    );
    State::parse(weights.bytes(&state)?, shape)
}

/// The tensors of a file that hold a weight quantized to NF4: names, types, shapes, bytes.
pub fn nf4_tensors(
    name: &str,
    weight: Quantized,
    state: &State,
) -> Vec<(String, Dtype, Vec<usize>, Vec<u8>)> {
    let floats = |numbers: &[f32]| {
        numbers
            .iter()
            .flat_map(|n| n.to_le_bytes())
            .collect::<Vec<u8>>()
    };
    let mut tensors = vec![
        (
            name.to_owned(),
            Dtype::U8,
            vec![weight.codes.len(), 1],
            weight.codes,
        ),
        (
            part(name, "quant_map"),
            Dtype::F32,
            vec![16],
            floats(&nf4::TABLE),
        ),
    ];
    match weight.scales {
        Scales::Plain(scales) => {
            tensors.push((
                part(name, "absmax"),
                Dtype::F32,
                vec![scales.len()],
                floats(&scales),
            ));
        }
        Scales::Nested { codes, scales, .. } => {
            let map = nf4::dynamic_map(true);
            tensors.push((part(name, "absmax"), Dtype::U8, vec![codes.len()], codes));
            tensors.push((
                part(name, "nested_absmax"),
                Dtype::F32,
                vec![scales.len()],
                floats(&scales),
            ));
            tensors.push((
                part(name, "nested_quant_map"),
                Dtype::F32,
                vec![256],
                floats(&map),
            ));
        }
    }
    let state_bytes = state.to_bytes();
    tensors.push((
        part(name, STATE),
        Dtype::U8,
        vec![state_bytes.len()],
        state_bytes,
    ));
    tensors
}

/// Codes of round(127 x / a) of rows of `columns` values, and the largest magnitude a of each; a value that is not finite is an error.
pub fn to_int8(values: &[f32], columns: usize) -> Result<(Vec<u8>, Vec<f32>)> {
    let mut codes = Vec::with_capacity(values.len());
    let mut largest = Vec::with_capacity(values.len() / columns.max(1));
    for (row, values) in values.chunks(columns.max(1)).enumerate() {
        let bad = values.iter().find(|value| !value.is_finite());
        ensure!(
            bad.is_none(),
            "row {row} holds {}; only finite values can be quantized",
            bad.copied().unwrap_or_default()
        );
        let a = values.iter().fold(0.0f32, |a, value| a.max(value.abs()));
        let factor = 127.0 / a;
        codes.extend(values.iter().map(|value| {
            let code = if factor.is_finite() {
                value * factor
            } else {
                0.0
            };
            code.round_ties_even() as i8 as u8
        }));
        largest.push(a);
    }
    Ok((codes, largest))
}

/// The tensors of a file that hold a weight in int8, `[out, in]` codes with the largest magnitude of each row: the names are those of
/// bitsandbytes' LLM.int8.
pub fn int8_tensors(
    name: &str,
    shape: [usize; 2],
    codes: Vec<u8>,
    largest: &[f32],
) -> Vec<(String, Dtype, Vec<usize>, Vec<u8>)> {
    let bytes = largest.iter().flat_map(|n| n.to_le_bytes()).collect();
    vec![
        (name.to_owned(), Dtype::I8, shape.to_vec(), codes),
        (beside(name, "SCB"), Dtype::F32, vec![largest.len()], bytes),
        // 0 stands for rows one after the other.
        (
            beside(name, "weight_format"),
            Dtype::U8,
            Vec::new(),
            vec![0],
        ),
    ]
}

/// Those of the linears (path, outputs, inputs) that `patterns` mean, which are to stay as they are: some, but not all of them.
pub fn skipped<P: AsRef<str>>(
    patterns: &[P],
    linears: &[(String, usize, usize)],
) -> Result<Vec<String>> {
    if patterns.is_empty() {
        return Ok(Vec::new());
    }
    let names: Vec<&str> = linears.iter().map(|(name, ..)| name.as_str()).collect();
    let skipped = peft::choose_targets(patterns, &names)?;
    ensure!(
        skipped.len() < names.len(),
        "nothing is left to be quantized"
    );
    Ok(skipped)
}

fn torch_name(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::BF16 => "bfloat16",
        Dtype::F16 => "float16",
        Dtype::F64 => "float64",
        _ => "float32",
    }
}

/// A number as Python's `repr` writes it.
fn python_float(value: f64) -> String {
    let scientific = format!("{value:e}");
    let exponent = scientific
        .split_once('e')
        .and_then(|(digits, power)| Some((digits, power.parse::<i32>().ok()?)));
    match exponent {
        Some((digits, power)) if !(-4..16).contains(&power) => {
            let sign = if power < 0 { '-' } else { '+' };
            format!("{digits}e{sign}{:02}", power.abs())
        }
        _ => format!("{value:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> State {
        State {
            block: 64,
            dtype: Dtype::BF16,
            shape: [96, 128],
            nested: Some((256, f64::from(0.052_359_264f32))),
        }
    }

    #[test]
    fn the_state_is_written_as_python_does_and_read_in_any_order() {
        let text = String::from_utf8(state().to_bytes()).unwrap();
        assert_eq!(
            text,
            "{\"quant_type\": \"nf4\", \"blocksize\": 64, \"dtype\": \"bfloat16\", \"shape\": [96, 128], \"nested_blocksize\": 256, \
             \"nested_dtype\": \"float32\", \"nested_offset\": 0.052359264343976974}"
        );
        assert_eq!(State::parse(text.as_bytes(), [96, 128]).unwrap(), state());
        let turned = r#"{"shape":[96,128],"nested_offset":0.052359264343976974,"dtype":"bfloat16","nested_blocksize":256,"blocksize":64,"quant_type":"nf4"}"#;
        assert_eq!(State::parse(turned.as_bytes(), [96, 128]).unwrap(), state());
        for (value, text) in [
            (5e-5, "5e-05"),
            (0.0001, "0.0001"),
            (1e16, "1e+16"),
            (0.5, "0.5"),
            (2.0, "2.0"),
        ] {
            assert_eq!(python_float(value), text);
        }
    }

    #[test]
    fn a_state_that_lies_is_refused() {
        let good = String::from_utf8(state().to_bytes()).unwrap();
        for (from, to, word) in [
            ("[96, 128]", "[128, 96]", "shape"),
            ("[96, 128]", "[18446744073709551615, 2]", "shape"),
            ("\"blocksize\": 64", "\"blocksize\": 48", "blocks of 48"),
            ("\"blocksize\": 64", "\"blocksize\": -1", "whole number"),
            ("bfloat16", "int8", "dtype"),
            ("\"nf4\"", "\"fp4\"", "quant_type"),
            (
                "\"nested_blocksize\": 256",
                "\"nested_blocksize\": 0",
                "nested blocks",
            ),
            ("0.052359264343976974", "\"x\"", "nested_offset"),
            ("{", "[", "JSON"),
        ] {
            let text = good.replacen(from, to, 1);
            let message = format!(
                "{:#}",
                State::parse(text.as_bytes(), [96, 128]).unwrap_err()
            );
            assert!(message.contains(word), "{text}: {message}");
        }
    }
}
