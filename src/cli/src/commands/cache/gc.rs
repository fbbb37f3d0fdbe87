//! `levain cache gc`: what nothing recent needs is removed.
//!
//! Kept are: everything that the locks of the last runs reach, whatever is young, answers that were recorded, and the logs of
//! runs. Entries go before blobs, so that a kill in between leaves nothing that points nowhere.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use engine::cache::{Cache, Entry};
use engine::contract::{Contracts, Repeatable};
use engine::digest::Digest;
use engine::record::Item;
use serde_json::json;

use super::size::{digest_of, walk};
use crate::context::Context;
use crate::failure::{Failure, Status};
use crate::log::runs;
use crate::units;

/// Private folders older than this belong to nobody.
const LEFT_OVER: Duration = Duration::from_secs(24 * 3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Remove what neither the last runs nor anything young needs
///
/// Kept are all results of the last runs, whatever is younger than the given age, recorded answers, and the logs of runs.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Remove only what is older
    #[arg(long, value_name = "DAYS", default_value_t = 30.0, value_parser = days)]
    older_than: f64,
    /// Keep everything that this many of the newest runs used
    #[arg(long, value_name = "COUNT", default_value_t = 10)]
    keep_runs: usize,
    /// Only say what would go
    #[arg(long)]
    dry_run: bool,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

fn days(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if (0.0..=36_500.0).contains(&value) => Ok(value),
        _ => Err("a number of days, 0 or more".to_owned()),
    }
}

/// What goes, and how large it is.
#[derive(Default)]
struct Rubbish {
    entries: Vec<PathBuf>,
    notes: Vec<PathBuf>,
    blobs: Vec<(PathBuf, u64)>,
    folders: Vec<(PathBuf, u64)>,
}

pub(crate) fn run(args: &Args, context: &Context) -> Result<Status> {
    let cache = context.existing_cache()?;
    if !args.dry_run && cache.at_work() {
        return Err(Failure::machine(anyhow::anyhow!(
            "a run is at work in {}: wait until it is done, or look with `--dry-run`",
            cache.root().display()
        )));
    }
    let age = DAY.mul_f64(args.older_than);
    let rubbish = find(&cache, context.contracts(), age, args.keep_runs)?;
    let bytes: u64 = rubbish
        .blobs
        .iter()
        .chain(&rubbish.folders)
        .map(|(_, size)| size)
        .sum();
    if !args.dry_run {
        remove(&rubbish)?;
    }
    if args.json {
        context.print_json(&json!({
            "removed": !args.dry_run, "entries": rubbish.entries.len(), "blobs": rubbish.blobs.len(),
            "notes": rubbish.notes.len(), "folders": rubbish.folders.len(), "bytes": bytes,
        }))?;
        return Ok(Status::Done);
    }
    let verb = if args.dry_run { "would go" } else { "removed" };
    context.print(&format!(
        "{}, {}, {}: {} {verb}\n",
        if rubbish.entries.len() == 1 {
            "1 entry".to_owned()
        } else {
            format!("{} entries", units::count(rubbish.entries.len() as u64))
        },
        units::plural(rubbish.blobs.len(), "blob"),
        units::plural(rubbish.folders.len(), "left-over folder"),
        units::bytes(bytes)
    ))?;
    Ok(Status::Done)
}

/// The age of a time; what has none, or lies in the future, is young.
fn age_of(time: Option<SystemTime>) -> Duration {
    time.and_then(|t| SystemTime::now().duration_since(t).ok())
        .unwrap_or_default()
}

/// Blobs all have the same modification time; when they were linked is told by their change time.
fn blob_age(metadata: &fs::Metadata) -> Duration {
    let seconds = u64::try_from(metadata.ctime()).unwrap_or(0);
    age_of(UNIX_EPOCH.checked_add(Duration::from_secs(seconds)))
}

fn find(cache: &Cache, contracts: Contracts, age: Duration, keep_runs: usize) -> Result<Rubbish> {
    let mut keys: BTreeSet<Digest> = BTreeSet::new();
    let mut sources: BTreeSet<Digest> = BTreeSet::new();
    for run in runs(&cache.runs())?
        .iter()
        .rev()
        .filter_map(|r| r.lock())
        .take(keep_runs)
    {
        keys.extend(run.stages.values().filter_map(|s| s.key));
        sources.extend(run.sources.values());
    }
    let mut rubbish = Rubbish::default();
    let mut kept: BTreeSet<Digest> = sources.clone();
    walk(&cache.root().join("entries"), &mut |path, metadata| {
        let Some(key) = digest_of(&path) else { return };
        let Some(entry) = cache.entry(key) else {
            return;
        };
        let keep = keys.contains(&key)
            || age_of(metadata.modified().ok()) < age
            || recorded(&entry, contracts);
        if keep {
            kept.extend(entry.reaches.iter().map(|(digest, _)| *digest));
        } else {
            rubbish.entries.push(path);
        }
    });
    find_sources(cache, age, &sources, &mut kept, &mut rubbish);
    walk(&cache.root().join("objects"), &mut |path, metadata| {
        let keep = digest_of(&path).is_none_or(|digest| kept.contains(&digest))
            || blob_age(metadata) < age;
        if !keep {
            rubbish.blobs.push((path, metadata.len()));
        }
    });
    find_folders(cache, age, &mut rubbish);
    Ok(rubbish)
}

/// Whether a person, a program or a remote endpoint gave the answer: it can't be made again.
fn recorded(entry: &Entry, contracts: Contracts) -> bool {
    let kind = entry
        .record
        .items()
        .find_map(|(name, item)| match (name, item) {
            ("kind", Item::Value(value)) => value.as_str(),
            _ => None,
        });
    // The answers of a kind that this program does not know are not its to throw away.
    kind.and_then(|k| contracts.any(k))
        .is_none_or(|c| c.repeatable == Repeatable::Recorded)
}

/// Notes about fetched sources: `location-….json` has a list of files, `files-DIGEST.json` is one.
fn find_sources(
    cache: &Cache,
    age: Duration,
    sources: &BTreeSet<Digest>,
    kept: &mut BTreeSet<Digest>,
    rubbish: &mut Rubbish,
) {
    walk(&cache.root().join("sources"), &mut |path, metadata| {
        let name = path
            .file_name()
            .and_then(|n| n.to_str())
            .unwrap_or_default();
        if !(name.starts_with("location-") || name.starts_with("files-"))
            || !name.ends_with(".json")
        {
            return;
        }
        let value: serde_json::Value = fs::read(&path)
            .ok()
            .and_then(|b| serde_json::from_slice(&b).ok())
            .unwrap_or_default();
        let list = value.get("files").unwrap_or(&value);
        let entries: Vec<engine::source::Entry> =
            serde_json::from_value(list.clone()).unwrap_or_default();
        let used = entries.iter().any(|e| sources.contains(&e.digest))
            || sources.contains(&engine::source::digest_of(&entries));
        if used || age_of(metadata.modified().ok()) < age {
            kept.extend(entries.iter().map(|e| e.digest));
        } else {
            rubbish.notes.push(path);
        }
    });
}

/// Snapshots nobody came back to, private folders that a kill left over, blobs that were set aside.
fn find_folders(cache: &Cache, age: Duration, rubbish: &mut Rubbish) {
    for (name, limit) in [("partial", age), ("tmp", LEFT_OVER), ("quarantine", age)] {
        let mut youngest: BTreeMap<PathBuf, (Duration, u64)> = BTreeMap::new();
        let root = cache.root().join(name);
        for entry in fs::read_dir(&root).into_iter().flatten().flatten() {
            // Answers to questions that are not all answered yet, such as a judge's that must be paid.
            if name == "partial" && entry.path().join(engine::job::ANSWERS).exists() {
                continue;
            }
            let own = entry.metadata().ok().and_then(|m| m.modified().ok());
            let found = youngest.entry(entry.path()).or_insert((age_of(own), 0));
            let mut visit = |_: PathBuf, metadata: &fs::Metadata| {
                // A quarantined blob has the time of all blobs.
                let age = if name == "quarantine" {
                    blob_age(metadata)
                } else {
                    age_of(metadata.modified().ok())
                };
                *found = (found.0.min(age), found.1 + metadata.len());
            };
            match entry.metadata() {
                Ok(metadata) if metadata.is_dir() => walk(&entry.path(), &mut visit),
                Ok(metadata) => {
                    visit(entry.path(), &metadata);
                    if name == "quarantine" {
                        found.0 = blob_age(&metadata);
                    }
                }
                Err(_) => {}
            }
        }
        rubbish.folders.extend(
            youngest
                .into_iter()
                .filter(|(_, (age, _))| *age >= limit)
                .map(|(path, (_, size))| (path, size)),
        );
    }
}

fn remove(rubbish: &Rubbish) -> Result<()> {
    let files = rubbish
        .entries
        .iter()
        .chain(&rubbish.notes)
        .chain(rubbish.blobs.iter().map(|(path, _)| path));
    for path in files {
        gone(path, fs::remove_file(path))?;
    }
    for (path, _) in &rubbish.folders {
        let result = if path.is_dir() {
            fs::remove_dir_all(path)
        } else {
            fs::remove_file(path)
        };
        gone(path, result)?;
    }
    Ok(())
}

/// What somebody else removed is gone as well.
fn gone(path: &Path, result: std::io::Result<()>) -> Result<()> {
    match result {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("{} can't be removed", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use engine::artifact::ArtifactType;
    use engine::job::Draft;
    use engine::lock::{RunLock, StageLock};
    use engine::plan::Verdict;
    use engine::record::Record;

    use super::*;

    /// Publishes one file under a record of kind `split`.
    fn publish(cache: &Cache, text: &str) -> (Digest, Entry) {
        let out = cache.private_folder().unwrap();
        let file = out.path().join("rows");
        fs::write(&file, text).unwrap();
        let draft = Draft {
            artifact: ArtifactType::Dataset,
            files: vec![("rows".to_owned(), file)],
            refs: BTreeMap::new(),
            summary: BTreeMap::new(),
        };
        let mut record = Record::default();
        record.add("kind", Item::Value("split".into()));
        record.add("param.text", Item::Value(text.into()));
        let entry = cache
            .publish(
                &record,
                &[("rows".to_owned(), draft)].into(),
                out.path(),
                BTreeMap::new(),
                false,
            )
            .unwrap()
            .entry;
        (record.key(), entry)
    }

    #[test]
    fn what_the_last_runs_reach_stays_and_the_rest_goes() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path()).unwrap();
        let (used, _) = publish(&cache, "used");
        let (unused, entry) = publish(&cache, "unused");
        let run = cache.runs().join("1700000000000-r-1");
        fs::create_dir(&run).unwrap();
        let stage = StageLock {
            kind: "split".to_owned(),
            key: Some(used),
            verdict: Verdict::WillRun,
            outcome: "done".to_owned(),
            reason: None,
            outputs: BTreeMap::new(),
        };
        let mut lock = RunLock::default();
        lock.stages.insert("rows".to_owned(), stage);
        lock.write(&run).unwrap();

        // Everything is young.
        let rubbish = find(&cache, kinds::contracts(), DAY, 10).unwrap();
        assert!(
            rubbish.entries.is_empty() && rubbish.blobs.is_empty() && rubbish.folders.is_empty()
        );

        let rubbish = find(&cache, kinds::contracts(), Duration::ZERO, 10).unwrap();
        assert_eq!(
            (rubbish.entries.len(), rubbish.blobs.len()),
            (1, entry.reaches.len())
        );
        remove(&rubbish).unwrap();
        assert!(cache.hit(used).is_some());
        assert!(cache.entry(unused).is_none());
        assert!(
            entry
                .reaches
                .iter()
                .all(|(digest, size)| !cache.has(*digest, *size))
        );
    }
}
