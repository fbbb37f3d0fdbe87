//! A store of blobs in a temporary folder, and the parts that every test of sources needs.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use engine::digest::Digest;
use engine::source::{
    BlobStore, Memo, Network, Pip, PipConfig, Progress, Resolved, Resolver, parse_spec,
};
use serde_json::Value;

/// A recipe's folder, a store and a network, all private to one test.
pub struct Bench {
    pub folder: tempfile::TempDir,
    pub network: Network,
    pub memo: Memo,
    pub offline: bool,
    pub update: bool,
    /// The progress that was told: (done, total).
    pub told: RefCell<Vec<(u64, Option<u64>)>>,
}

impl Bench {
    pub fn new() -> Bench {
        let folder = tempfile::tempdir().unwrap();
        for name in ["recipe", "store/blobs", "store/notes"] {
            std::fs::create_dir_all(folder.path().join(name)).unwrap();
        }
        Bench {
            memo: Memo::new(folder.path().join("memo")),
            folder,
            network: Network {
                hf_endpoint: "http://127.0.0.1:1".into(),
                hf_token: None,
                pip: Pip::Fixed(PipConfig::default()),
                connect_timeout: Duration::from_secs(5),
                read_timeout: Duration::from_millis(700),
                retries: 2,
                pause: Duration::from_millis(5),
            },
            offline: false,
            update: false,
            told: RefCell::default(),
        }
    }

    /// The recipe's folder.
    pub fn base(&self) -> PathBuf {
        self.folder.path().join("recipe")
    }

    /// Writes a file of the recipe's folder.
    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.base().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// Runs `job` with a resolver of this bench.
    pub fn with<T>(&self, job: impl FnOnce(&Resolver) -> T) -> T {
        let (base, store) = (self.base(), self.store());
        let told = |p: Progress| self.told.borrow_mut().push((p.done, p.total));
        let resolver = Resolver::new(&base, &store, &self.memo, &self.network)
            .offline(self.offline)
            .update(self.update)
            .progress(&told);
        job(&resolver)
    }

    pub fn local(&self, source: Value) -> Result<Option<Resolved>> {
        self.with(|resolver| resolver.local(&parse_spec(&source).unwrap(), None))
    }

    pub fn fetch(&self, source: Value) -> Result<Resolved> {
        self.with(|resolver| resolver.fetch(&parse_spec(&source).unwrap(), None))
    }

    /// The message of a fetch that fails.
    pub fn refusal(&self, source: Value) -> String {
        match self.fetch(source) {
            Ok(resolved) => panic!("resolved to {resolved:?}"),
            Err(error) => format!("{error:#}"),
        }
    }

    pub fn store(&self) -> Store {
        Store(self.folder.path().join("store"))
    }

    /// All that is written in notes.
    pub fn notes(&self) -> String {
        let mut text = String::new();
        for entry in std::fs::read_dir(self.folder.path().join("store/notes")).unwrap() {
            text += &std::fs::read_to_string(entry.unwrap().path()).unwrap();
        }
        text
    }

    /// The names of partial downloads that are left.
    pub fn parts(&self) -> Vec<String> {
        let folder = std::fs::read_dir(self.folder.path().join("store/parts"));
        let names = folder.into_iter().flatten();
        names
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    /// How many blobs the store has.
    pub fn blobs(&self) -> usize {
        std::fs::read_dir(self.folder.path().join("store/blobs"))
            .unwrap()
            .count()
    }
}

/// (name, text) of every file of a source, in its order.
pub fn contents(resolved: &Resolved) -> Vec<(String, String)> {
    let read = |file: &engine::source::SourceFile| {
        let bytes = std::fs::read(&file.path).unwrap();
        assert_eq!(Digest::of_bytes(&bytes), file.digest);
        assert_eq!(bytes.len() as u64, file.size);
        (file.name.clone(), String::from_utf8(bytes).unwrap())
    };
    resolved.files.iter().map(read).collect()
}

/// [`contents`] written down by hand.
pub fn named(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs
        .iter()
        .map(|(name, text)| (name.to_string(), text.to_string()))
        .collect()
}

/// The store of a bench.
pub struct Store(PathBuf);

impl Store {
    /// The store of the bench with this recipe folder.
    pub fn beside(recipe: &Path) -> Store {
        Store(recipe.with_file_name("store"))
    }
}

impl BlobStore for Store {
    fn path_of(&self, digest: &Digest) -> Option<PathBuf> {
        let path = self.0.join("blobs").join(digest.to_string());
        path.is_file().then_some(path)
    }

    fn import(&self, file: &Path, digest: &Digest) -> Result<PathBuf> {
        assert_eq!(
            Digest::of_file(file)?.0,
            *digest,
            "a blob under a wrong name"
        );
        let path = self.0.join("blobs").join(digest.to_string());
        std::fs::rename(file, &path)?;
        Ok(path)
    }

    fn temp_dir(&self) -> Result<tempfile::TempDir> {
        Ok(tempfile::tempdir_in(&self.0)?)
    }

    fn partial_dir(&self) -> Result<PathBuf> {
        Ok(self.0.join("parts"))
    }

    fn read_note(&self, name: &str) -> Option<Vec<u8>> {
        std::fs::read(self.0.join("notes").join(name)).ok()
    }

    fn write_note(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let letters = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b".-".contains(&b);
        assert!(name.bytes().all(letters), "{name}");
        Ok(std::fs::write(self.0.join("notes").join(name), bytes)?)
    }
}
