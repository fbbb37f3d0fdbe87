//! The encoding of records against vectors that an independent program made: tests/golden/make/record_vectors.py.

extern crate levain_engine as engine;

use engine::record::Record;
use serde::Deserialize;

#[derive(Deserialize)]
struct Vectors {
    made_by: String,
    vectors: Vec<Vector>,
}

#[derive(Deserialize)]
struct Vector {
    name: String,
    record: Record,
    /// Hexadecimal.
    encoding: String,
    key: String,
}

fn vectors() -> Vec<Vector> {
    let all: Vectors = serde_json::from_str(include_str!("data/record_vectors.json")).unwrap();
    assert!(all.made_by.contains("record_vectors.py"));
    assert!(all.vectors.len() > 20);
    all.vectors
}

#[test]
fn records_are_encoded_as_written_down() {
    for vector in vectors() {
        let encoding: String = vector
            .record
            .encode()
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        assert_eq!(
            encoding, vector.encoding,
            "the encoding of `{}`",
            vector.name
        );
        assert_eq!(
            vector.record.key().to_string(),
            vector.key,
            "the key of `{}`",
            vector.name
        );
    }
}

#[test]
fn no_two_of_them_share_a_key_unless_they_say_so() {
    let all = vectors();
    for (index, one) in all.iter().enumerate() {
        for other in &all[index + 1..] {
            let group = |name: &str| name.split_once(" = ").map(|(_, g)| g.to_owned());
            let alike = group(&one.name).is_some() && group(&one.name) == group(&other.name);
            assert_eq!(
                one.key == other.key,
                alike,
                "`{}` and `{}`",
                one.name,
                other.name
            );
        }
    }
}

#[test]
fn a_record_that_was_stored_has_the_key_it_had() {
    for vector in vectors() {
        let stored = serde_json::to_vec(&vector.record).unwrap();
        let read: Record = serde_json::from_slice(&stored).unwrap();
        assert_eq!(read.key().to_string(), vector.key, "`{}`", vector.name);
    }
}
