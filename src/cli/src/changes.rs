//! What `quantize` and `merge` did to the weights of a model: their sums, and the tensors that changed most.

use std::collections::BTreeMap;

use engine::event::number_text;
use serde_json::{Map, Value};

use crate::{answers, table, units};

/// The sums of `summary`, and `count` entries of `metrics.json` with the largest changes first; none when it is the metrics of something
/// else.
pub(crate) fn text(
    metrics: &Value,
    summary: &BTreeMap<String, Value>,
    count: usize,
) -> Option<String> {
    let list = |name: &str| metrics.get(name).and_then(Value::as_array);
    let (table, what) = match (list("tensors"), list("layers")) {
        (Some(tensors), _) if has(tensors, "bytes_after") => {
            (quantized(tensors, count), "quantized tensors")
        }
        (_, Some(layers)) if has(layers, "change") => (merged(layers, count), "merged layers"),
        _ => return None,
    };
    let (rows, of) = table;
    let shown = rows.len().saturating_sub(1);
    let sums: Map<String, Value> = (summary.iter())
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    let numbers: Vec<usize> = (1..rows.first().map_or(1, Vec::len)).collect();
    let mut text = answers::plain(&Value::Object(sums), "  ");
    text.push('\n');
    text.push_str(&table::columns(&rows, &numbers, "  "));
    if shown < of {
        text.push_str(&format!(
            "  {shown} of {of} {what}; `--rows COUNT` prints more, `--json` prints all\n"
        ));
    }
    Some(text)
}

fn has(list: &[Value], key: &str) -> bool {
    list.first().is_some_and(|entry| entry.get(key).is_some())
}

/// The entries that `wanted` takes, those with the largest number first.
fn largest<'a>(list: &'a [Value], key: &str, wanted: fn(&Value) -> bool) -> Vec<&'a Value> {
    let mut all: Vec<&Value> = list.iter().filter(|entry| wanted(entry)).collect();
    let number = |entry: &Value| entry[key].as_f64().unwrap_or(f64::INFINITY);
    all.sort_by(|a, b| number(b).total_cmp(&number(a)));
    all
}

fn word(entry: &Value, key: &str) -> String {
    entry[key].as_str().unwrap_or("?").to_owned()
}

fn part(entry: &Value, key: &str) -> String {
    let number = entry[key].as_f64();
    number.map_or_else(|| "?".to_owned(), |part| format!("{:.3} %", 100.0 * part))
}

/// A table of quantized tensors, and how many there are.
fn quantized(tensors: &[Value], count: usize) -> (Vec<Vec<String>>, usize) {
    let packed = |entry: &Value| entry["bytes_after"] != entry["bytes_before"];
    let all = largest(tensors, "error", packed);
    let heads = [
        "tensor",
        "stored",
        "shape",
        "before",
        "after",
        "error",
        "largest change",
    ];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    for entry in all.iter().take(count) {
        let extents = entry["shape"].as_array().into_iter().flatten();
        let extents: Vec<String> = extents.map(Value::to_string).collect();
        let bytes = |key: &str| units::bytes(entry[key].as_u64().unwrap_or_default());
        let change = entry["largest_change"].as_f64();
        rows.push(vec![
            word(entry, "name"),
            word(entry, "stored"),
            extents.join(" × "),
            bytes("bytes_before"),
            bytes("bytes_after"),
            part(entry, "error"),
            change.map_or_else(|| "?".to_owned(), number_text),
        ]);
    }
    (rows, all.len())
}

/// A table of merged layers, and how many there are.
fn merged(layers: &[Value], count: usize) -> (Vec<Vec<String>>, usize) {
    let all = largest(layers, "change", |_| true);
    let mut rows = vec![
        ["layer", "change", "lost by rounding"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for entry in all.iter().take(count) {
        rows.push(vec![
            word(entry, "name"),
            part(entry, "change"),
            part(entry, "rounding"),
        ]);
    }
    (rows, all.len())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn summary(value: Value) -> BTreeMap<String, Value> {
        value.as_object().unwrap().clone().into_iter().collect()
    }

    #[test]
    fn the_largest_errors_of_quantized_tensors_come_first() {
        let tensor = |name: &str, after: u64, error: f64| {
            json!({
                "name": name, "shape": [64, 32], "stored": if after == 4096 { "BF16" } else { "NF4" },
                "bytes_before": 4096, "bytes_after": after, "error": error, "largest_change": error / 8.0,
            })
        };
        let metrics = json!({ "tensors": [
            tensor("embedding", 4096, 0.0), tensor("a", 1200, 0.0625), tensor("b", 1200, 0.09375), tensor("c", 1200, 0.03125),
        ] });
        let sums = summary(json!({ "bytes_after": 7696, "ratio": 2.129 }));
        insta::assert_snapshot!(text(&metrics, &sums, 2).unwrap(), @r"
          bytes_after  7,696
          ratio        2.1290

          tensor  stored    shape  before   after    error  largest change
          b          NF4  64 × 32  4.1 kB  1.2 kB  9.375 %          0.0117
          a          NF4  64 × 32  4.1 kB  1.2 kB  6.250 %          0.0078
          2 of 3 quantized tensors; `--rows COUNT` prints more, `--json` prints all
        ");
    }

    #[test]
    fn the_layers_that_merging_changed_most_come_first() {
        let layer =
            |name: &str, change: f64| json!({ "name": name, "change": change, "rounding": 0.125 });
        let metrics = json!({ "into": "full_precision", "layers": [layer("a", 0.0078125), layer("b", 0.015625)] });
        let sums = summary(json!({ "modules": 2 }));
        insta::assert_snapshot!(text(&metrics, &sums, 3).unwrap(), @r"
          modules  2

          layer   change  lost by rounding
          b      1.562 %          12.500 %
          a      0.781 %          12.500 %
        ");
        for other in [
            json!({ "loss": 1.0 }),
            json!({ "tensors": [], "layers": [{ "name": "x" }] }),
        ] {
            assert_eq!(text(&other, &summary(json!({})), 3), None);
        }
    }
}
