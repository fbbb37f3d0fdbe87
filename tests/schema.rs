//! What is made from the contracts and checked in beside them: the JSON Schema of recipes and the manual of kinds.
//! That the schema takes what it should and refuses what it can is checked in `tests/interop/schema.py`, by a validator.
//!
//! `UPDATE=1 cargo test --test schema` writes both anew.

use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Compares `text` with the file, or writes it when asked to.
fn compare(path: &Path, text: &str) {
    if std::env::var_os("UPDATE").is_some_and(|v| v == "1") {
        std::fs::create_dir_all(path.parent().expect("a file has a folder")).unwrap();
        std::fs::write(path, text).unwrap();
        return;
    }
    let found = std::fs::read_to_string(path).unwrap_or_default();
    let line = found
        .lines()
        .zip(text.lines())
        .position(|(a, b)| a != b)
        .unwrap_or(found.lines().count().min(text.lines().count()));
    assert!(
        found == text,
        "{}:{} is not what the contracts say; write it anew with `UPDATE=1 cargo test --test schema`",
        path.display(),
        line + 1
    );
}

fn schema() -> serde_json::Value {
    engine::schema::recipe_schema(kinds::contracts())
}

#[test]
fn the_schema_is_the_one_that_is_checked_in() {
    compare(
        &root().join("schemas/recipe.schema.json"),
        &format!("{:#}\n", schema()),
    );
}

#[test]
fn the_manual_of_kinds_is_the_one_that_is_checked_in() {
    compare(
        &root().join("docs/kinds.md"),
        &engine::manual::markdown(kinds::contracts()),
    );
}
