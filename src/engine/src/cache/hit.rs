//! Hits: what is stored under a key, if all its blobs are there. A plan asks for thousands.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::{Cache, Entry, Provenance};
use crate::digest::Digest;
use crate::record::Record;

/// Most entries are not longer.
const USUAL_BYTES: usize = 2 << 10;

/// An entry as it is written. Its record is read only where it is not the one that is looked for.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written<'a> {
    #[serde(borrow)]
    record: &'a RawValue,
    outputs: BTreeMap<String, Digest>,
    reaches: Vec<(Digest, u64)>,
    tokenizers: BTreeMap<String, Digest>,
    #[serde(default, rename = "provenance")]
    _provenance: Option<IgnoredAny>,
}

impl Written<'_> {
    fn into_entry(self, key: Digest, wanted: Option<&Arc<Record>>) -> Result<Entry, String> {
        let same = |record: &&Arc<Record>| {
            serde_json::to_string(record.as_ref()).is_ok_and(|text| text == self.record.get())
        };
        let record = match wanted.filter(same) {
            Some(record) => Arc::clone(record),
            None => {
                let read: Record =
                    serde_json::from_str(self.record.get()).map_err(|e| e.to_string())?;
                Arc::new(read)
            }
        };
        if record.key() != key {
            return Err("its record has another key".to_owned());
        }
        Ok(Entry {
            record,
            outputs: self.outputs,
            reaches: self.reaches,
            tokenizers: self.tokenizers,
            provenance: Provenance::new(),
        })
    }
}

impl Cache {
    /// What is stored under `key`, whether or not its blobs are there.
    pub fn entry(&self, key: Digest) -> Option<Entry> {
        self.read_entry(key, None)
    }

    fn read_entry(&self, key: Digest, wanted: Option<&Arc<Record>>) -> Option<Entry> {
        let mut buffer = [0; USUAL_BYTES];
        let bytes = self.entries.read(key, &mut buffer).ok()?;
        let entry = std::str::from_utf8(&bytes)
            .map_err(|e| e.to_string())
            .and_then(|text| serde_json::from_str::<Written>(text).map_err(|e| e.to_string()))
            .and_then(|written| written.into_entry(key, wanted));
        match entry {
            Ok(entry) => Some(entry),
            Err(cause) => {
                tracing::warn!(
                    "the entry {} can't be used ({cause}) and was set aside",
                    key.short()
                );
                let _ = fs::rename(
                    self.entries.path_of(key),
                    self.root().join("quarantine").join(format!("entry-{key}")),
                );
                None
            }
        }
    }

    /// Where and how what is stored under `key` was made.
    pub fn provenance(&self, key: Digest) -> Option<Provenance> {
        #[derive(Deserialize)]
        struct Part {
            provenance: Provenance,
        }
        let bytes = fs::read(self.entries.path_of(key)).ok()?;
        let part: Part = serde_json::from_slice(&bytes).ok()?;
        Some(part.provenance)
    }

    /// A hit: the entry and every blob that it reaches. Anything less is a miss.
    pub fn hit(&self, key: Digest) -> Option<Entry> {
        self.whole(key, self.entry(key)?)
    }

    /// The same for a record at hand, which then need not be read again.
    pub fn hit_of(&self, record: &Arc<Record>) -> Option<Entry> {
        let key = record.key();
        self.whole(key, self.read_entry(key, Some(record))?)
    }

    fn whole(&self, key: Digest, entry: Entry) -> Option<Entry> {
        if entry
            .reaches
            .iter()
            .all(|(digest, size)| self.has(*digest, *size))
        {
            return Some(entry);
        }
        // Entries are written once: one whose blobs are gone makes room for the next.
        tracing::info!("the entry {} reaches blobs that are gone", key.short());
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Item;

    fn record(number: i64) -> Arc<Record> {
        let mut record = Record::default();
        record.add("kind", Item::Value("split".into()));
        record.add("param.test", Item::Value(number.into()));
        record.add("input.data", Item::Digest(Digest::of_bytes(b"rows")));
        Arc::new(record)
    }

    /// An entry of `record` as it might be written, under `key`, that reaches one blob.
    fn write(cache: &Cache, key: Digest, record: &str, blob: (Digest, u64)) {
        let path = cache.entries.path_of(key);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let reaches = serde_json::to_string(&[blob]).unwrap();
        let text = format!(
            r#"{{"record":{record},"outputs":{{}},"reaches":{reaches},"tokenizers":{{}},"provenance":{{"host":"a"}}}}"#
        );
        fs::write(path, text).unwrap();
    }

    #[test]
    fn a_record_may_be_spelt_in_another_way_but_not_be_another() {
        let temp = tempfile::tempdir().unwrap();
        let cache = Cache::open(temp.path()).unwrap();
        let blob = (cache.put(b"bytes").unwrap(), 5);
        let (one, two) = (record(1), record(2));
        let plain = serde_json::to_string(&*one).unwrap();
        let spaced = serde_json::to_string_pretty(&*one).unwrap();
        for text in [&plain, &spaced] {
            write(&cache, one.key(), text, blob);
            let found = cache.hit_of(&one).unwrap();
            assert_eq!(found.record, one);
            assert_eq!(cache.hit(one.key()).unwrap(), found);
        }
        write(&cache, two.key(), &plain, blob);
        assert!(cache.hit_of(&two).is_none());
        assert!(!cache.entries.path_of(two.key()).exists());
        let aside = temp.path().join("quarantine");
        assert!(aside.join(format!("entry-{}", two.key())).exists());
    }

    #[test]
    fn an_entry_whose_blob_is_gone_or_damaged_is_no_hit() {
        let temp = tempfile::tempdir().unwrap();
        let cache = Cache::open(temp.path()).unwrap();
        let blob = (cache.put(b"bytes").unwrap(), 5);
        let (record, path) = (record(1), cache.object_path(blob.0));
        write(
            &cache,
            record.key(),
            &serde_json::to_string(&*record).unwrap(),
            blob,
        );
        assert!(cache.hit_of(&record).is_some());
        fs::remove_file(&path).unwrap();
        assert!(cache.hit_of(&record).is_none());
        for bytes in ["other", "bytes and more", ""] {
            fs::write(&path, bytes).unwrap();
            assert!(cache.hit_of(&record).is_none(), "{bytes}");
            assert!(!path.exists());
        }
        fs::write(&path, "bytes").unwrap();
        assert!(cache.hit_of(&record).is_some());
        assert!(cache.entry(record.key()).is_some());
    }
}
