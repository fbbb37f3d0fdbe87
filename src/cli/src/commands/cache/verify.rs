//! `levain cache verify`: every blob is hashed again, every entry is read.

use anyhow::Result;
use engine::digest::Digest;
use serde_json::json;

use super::size::{digest_of, walk};
use crate::context::Context;
use crate::failure::Status;
use crate::units;

/// Hash every blob again and read every entry; what is damaged is set aside
///
/// A damaged blob is moved to `quarantine`: what needs it becomes a miss, and the next run makes it anew. Ends with 1 when
/// something was damaged.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

pub(crate) fn run(args: &Args, context: &Context) -> Result<Status> {
    let cache = context.existing_cache()?;
    let (mut blobs, mut bytes) = (0usize, 0u64);
    let mut damaged: Vec<Digest> = Vec::new();
    let mut strange: Vec<String> = Vec::new();
    let mut unread: Vec<String> = Vec::new();
    walk(&cache.root().join("objects"), &mut |path, metadata| {
        let Some(digest) = digest_of(&path) else {
            strange.push(path.display().to_string());
            return;
        };
        blobs += 1;
        bytes += metadata.len();
        match Digest::of_file(&path) {
            Ok((found, _)) if found == digest => {}
            Ok(_) => damaged.push(digest),
            Err(error) => unread.push(format!("{}: {error}", path.display())),
        }
    });
    damaged.iter().for_each(|digest| cache.quarantine(*digest));
    let mut keys = Vec::new();
    walk(
        &cache.root().join("entries"),
        &mut |path, _| match digest_of(&path) {
            Some(key) => keys.push(key),
            None => strange.push(path.display().to_string()),
        },
    );
    let (mut wrong, mut incomplete) = (Vec::new(), 0usize);
    for key in &keys {
        match cache.entry(*key) {
            // An entry that can't be read was set aside by the cache itself.
            None => wrong.push(*key),
            Some(entry) if entry.record.key() != *key => {
                let from = engine_entry_path(&cache, *key);
                let _ = std::fs::rename(
                    &from,
                    cache.root().join("quarantine").join(format!("entry-{key}")),
                );
                wrong.push(*key);
            }
            Some(_) if cache.hit(*key).is_none() => incomplete += 1,
            Some(_) => {}
        }
    }
    let fine = damaged.is_empty() && wrong.is_empty() && unread.is_empty();
    if args.json {
        context.print_json(&json!({
            "blobs": blobs, "bytes": bytes, "entries": keys.len(), "damaged_blobs": damaged, "damaged_entries": wrong,
            "incomplete_entries": incomplete, "strange_files": strange, "unreadable": unread,
        }))?;
    } else {
        let mut text = format!(
            "{} ({}) and {} looked at\n",
            units::plural(blobs, "blob"),
            units::bytes(bytes),
            entries(keys.len())
        );
        for digest in &damaged {
            text.push_str(&format!(
                "{} the blob {} was damaged and is in quarantine now\n",
                context.out.red("✗"),
                digest.short()
            ));
        }
        for key in &wrong {
            text.push_str(&format!(
                "{} the entry {} was damaged and is in quarantine now\n",
                context.out.red("✗"),
                key.short()
            ));
        }
        unread
            .iter()
            .for_each(|line| text.push_str(&format!("{} {line}\n", context.out.red("✗"))));
        strange.iter().for_each(|line| {
            text.push_str(&format!(
                "{} {line} does not belong here\n",
                context.out.yellow("!")
            ))
        });
        if incomplete > 0 {
            text.push_str(&format!(
                "{} without all of their blobs: a run makes them anew\n",
                entries(incomplete)
            ));
        }
        text.push_str(if fine {
            "everything is whole\n"
        } else {
            "the next run makes anew what it needs\n"
        });
        context.print(&text)?;
    }
    Ok(if fine { Status::Done } else { Status::Failed })
}

fn entries(count: usize) -> String {
    if count == 1 {
        "1 entry".to_owned()
    } else {
        format!("{} entries", units::count(count as u64))
    }
}

fn engine_entry_path(cache: &engine::cache::Cache, key: Digest) -> std::path::PathBuf {
    let text = key.to_string();
    cache
        .root()
        .join("entries")
        .join(&text[..2])
        .join(&text[2..])
}
