//! Whether the numbers beside a quantized weight can be what they should: a model that came from outside is looked at once, when it is loaded.

use super::{Linear, beside, part};
use crate::Dtype;
use crate::nf4;
use crate::tensors::{Stored, Weights};
use anyhow::{Result, ensure};

/// How far a table may be from ours: the last bits of its making differ between processors.
const SAME: f32 = 1e-5;

/// Refuses scales that are not finite or negative, tables of other codes than NF4's, and other orders of int8 codes than rows.
pub(crate) fn check(weights: &Weights, name: &str, stored: &Linear) -> Result<()> {
    match stored {
        Linear::Dense => Ok(()),
        Linear::Nf4(state) => {
            table(weights, &part(name, "quant_map"), &nf4::TABLE)?;
            match state.nested {
                None => scales(weights, &part(name, "absmax")),
                Some((block, _)) => {
                    ensure!(
                        block == nf4::NESTED_BLOCK,
                        "its state says nested blocks of {block} scales; bitsandbytes' have {}",
                        nf4::NESTED_BLOCK
                    );
                    table(
                        weights,
                        &part(name, "nested_quant_map"),
                        &nf4::dynamic_map(true),
                    )?;
                    scales(weights, &part(name, "nested_absmax"))
                }
            }
        }
        Linear::Int8 => {
            scales(weights, &beside(name, "SCB"))?;
            let format = beside(name, "weight_format");
            let Some(info) = weights.get(&format) else {
                return Ok(());
            };
            let rows = info.stored == Stored::Plain(Dtype::U8)
                && weights.bytes(&format)?.iter().all(|byte| *byte == 0);
            ensure!(
                rows,
                "{format:?} says that its codes do not lie row after row, which is not supported: save the model again with a newer bitsandbytes"
            );
            Ok(())
        }
    }
}

fn scales(weights: &Weights, name: &str) -> Result<()> {
    let scales = weights.read_f32(name)?;
    let bad = scales
        .iter()
        .position(|scale| !(scale.is_finite() && *scale >= 0.0));
    ensure!(
        bad.is_none(),
        "number {} of {name:?} is {}, which is no scale",
        bad.unwrap_or_default(),
        scales[bad.unwrap_or_default()]
    );
    Ok(())
}

fn table(weights: &Weights, name: &str, known: &[f32]) -> Result<()> {
    let found = weights.read_f32(name)?;
    let other = found
        .iter()
        .zip(known)
        .position(|(found, known)| found.is_nan() || (found - known).abs() > SAME);
    ensure!(
        other.is_none(),
        "{name:?} holds other numbers than NF4's: {} where {} was expected",
        found[other.unwrap_or_default()],
        known[other.unwrap_or_default()]
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::{State, int8_tensors, linear, nf4_tensors, to_int8};
    use super::*;
    use crate::safetensors;

    type Tensors = Vec<(String, Dtype, Vec<usize>, Vec<u8>)>;

    /// What is said of `w.weight` in a file with these tensors, of which `change` spoils one.
    fn said(mut tensors: Tensors, name: &str, change: impl Fn(&mut Vec<u8>)) -> Option<String> {
        let spoilt = tensors.iter_mut().find(|tensor| tensor.0 == name);
        change(&mut spoilt.unwrap().3);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        safetensors::write_file(&path, &tensors, &[("format", "pt")]).unwrap();
        let weights = Weights::open_files(&[("model.safetensors".to_owned(), path)]).unwrap();
        let stored = linear(&weights, "w.weight", [4, 64]).unwrap();
        let error = check(&weights, "w.weight", &stored).err();
        error.map(|error| error.to_string())
    }

    fn nf4_file(nested: bool) -> Tensors {
        let values: Vec<f32> = (0..256).map(|i| (i as f32 - 100.0) / 64.0).collect();
        let weight = nf4::quantize(&values, 64, nested, 1).unwrap();
        let offset = match &weight.scales {
            nf4::Scales::Plain(_) => None,
            nf4::Scales::Nested { offset, .. } => Some((nf4::NESTED_BLOCK, f64::from(*offset))),
        };
        let state = State {
            block: 64,
            dtype: Dtype::F32,
            shape: [4, 64],
            nested: offset,
        };
        nf4_tensors("w.weight", weight, &state)
    }

    fn first(value: f32) -> impl Fn(&mut Vec<u8>) {
        move |bytes| bytes[..4].copy_from_slice(&value.to_le_bytes())
    }

    #[test]
    fn numbers_that_can_not_be_are_refused() {
        let same = |_: &mut Vec<u8>| {};
        assert_eq!(said(nf4_file(false), "w.weight", same), None);
        assert_eq!(said(nf4_file(true), "w.weight", same), None);
        for bad in [f32::NAN, f32::INFINITY, -1.0] {
            let message = said(nf4_file(false), "w.weight.absmax", first(bad)).unwrap();
            assert!(message.contains("which is no scale"), "{message}");
            let message = said(nf4_file(true), "w.weight.nested_absmax", first(bad)).unwrap();
            assert!(message.contains("nested_absmax"), "{message}");
        }
        let message = said(nf4_file(true), "w.weight.quant_map", first(0.3)).unwrap();
        assert!(message.contains("other numbers than NF4's"), "{message}");
        let message = said(nf4_file(true), "w.weight.nested_quant_map", first(f32::NAN)).unwrap();
        assert!(message.contains("other numbers than NF4's"), "{message}");

        let int8 = || {
            let (codes, largest) = to_int8(&[0.5; 256], 64).unwrap();
            int8_tensors("w.weight", [4, 64], codes, &largest)
        };
        assert_eq!(said(int8(), "w.weight", same), None);
        let message = said(int8(), "w.SCB", first(f32::NAN)).unwrap();
        assert!(message.contains("SCB"), "{message}");
        let message = said(int8(), "w.weight_format", |bytes| bytes[0] = 2).unwrap();
        assert!(message.contains("row after row"), "{message}");
    }
}
