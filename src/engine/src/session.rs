//! A recipe at work: read, with its sources looked up, its plan, and its cache.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};

use crate::cache::{Cache, Entry};
use crate::contract::{Contracts, From};
use crate::diagnostic::{Place, Problem, Problems};
use crate::digest::Digest;
use crate::job::SourceFile;
use crate::lock::{RecipeLock, RunLock};
use crate::plan::{Plan, Sources, Standing, Verdict};
use crate::recipe::{self, Recipe};
use crate::shell::quoted;
use crate::source::{BlobStore, Memo, Network, Progress, Resolved, Resolver, SourceSpec};

/// A recipe with everything that can be told without running it.
pub struct Session {
    /// The recipe.
    pub recipe: Recipe,
    /// Its nodes.
    pub plan: Plan,
    /// Where results are kept.
    pub cache: Cache,
    /// The contracts it was read with.
    pub contracts: Contracts,
    /// `--set` options.
    pub set: Vec<String>,
    /// What is known of sources.
    pub sources: Sources,
    lock: RecipeLock,
    memo: Memo,
    /// The nodes that the command is about; all of them unless [`Session::about`] was called.
    only: Option<Vec<bool>>,
}

impl Session {
    /// Reads the recipe and looks at the sources that are here; no network.
    pub fn open(path: &Path, set: &[String], contracts: Contracts, cache: Cache) -> Result<Self> {
        let recipe = recipe::read(path, set, contracts)?;
        let plan = Plan::new(&recipe, contracts);
        let lock = RecipeLock::read(path)?;
        let memo = Memo::new(cache.root().join("sources"));
        let mut session = Self {
            recipe,
            plan,
            cache,
            contracts,
            set: set.to_vec(),
            sources: Sources::new(),
            lock,
            memo,
            only: None,
        };
        session.look()?;
        Ok(session)
    }

    /// The recipe as it is typed behind a command, with the options that change it.
    pub fn typed(&self) -> String {
        let mut words = quoted(&self.recipe.path.to_string_lossy()).into_owned();
        for option in &self.set {
            words.push_str(&format!(" --set {}", quoted(option)));
        }
        words
    }

    /// From now on only the sources of `targets` and of what they need are missed and fetched.
    pub fn about(&mut self, targets: &[String]) {
        let targets: Vec<usize> = targets
            .iter()
            .filter_map(|name| self.find(name))
            .map(|(node, _)| node)
            .collect();
        self.only = (!targets.is_empty()).then(|| self.plan.with_needs(targets));
    }

    fn look(&mut self) -> Result<()> {
        // The network is only a word here: `local` never uses it.
        let network = Network::from_env();
        let resolver = Resolver::new(self.recipe.folder(), &self.cache, &self.memo, &network);
        let mut known: BTreeMap<String, Option<Resolved>> = BTreeMap::new();
        let mut found = Sources::new();
        let mut problems = Vec::new();
        for (index, field, spec) in self.wanted() {
            let text = spec_text(&spec);
            let resolved = match known.get(&text) {
                Some(resolved) => resolved.clone(),
                None => match resolver.local(&spec, self.pin(&spec)) {
                    Ok(resolved) => {
                        known.insert(text, resolved.clone());
                        resolved
                    }
                    Err(error) => {
                        problems.push(self.source_problem(index, field, &error).ok_or(error)?);
                        continue;
                    }
                },
            };
            if let Some(resolved) = resolved {
                found.insert((index, field), resolved);
            }
        }
        drop(resolver);
        if !problems.is_empty() {
            return Err(Problems::new(self.recipe.sources.clone(), problems).into());
        }
        self.sources = found;
        Ok(())
    }

    /// The sources that would have to be fetched, as written.
    pub fn missing(&self) -> Vec<String> {
        let mut list: Vec<_> = self
            .wanted()
            .into_iter()
            .filter(|(i, f, _)| !self.sources.contains_key(&(*i, *f)))
            .map(|(_, _, spec)| spec_text(&spec))
            .collect();
        list.sort();
        list.dedup();
        list
    }

    /// Whether the cache knows a remote source that neither the recipe nor its lock pins: it came with another recipe, or the lock was
    /// removed.
    pub fn has_unpinned(&self) -> bool {
        self.wanted().into_iter().any(|(index, field, spec)| {
            let remote = |found: &Resolved| found.remote;
            spec.pin.is_none()
                && self.sources.get(&(index, field)).is_some_and(remote)
                && !self.lock.sources.contains_key(&spec_text(&spec))
        })
    }

    /// Fetches what is missing, and pins it and what is not pinned yet in the recipe's lock.
    pub fn fetch(&mut self, network: &Network, progress: &dyn Fn(Progress)) -> Result<()> {
        let resolver = Resolver::new(self.recipe.folder(), &self.cache, &self.memo, network)
            .progress(progress);
        let mut fetched: BTreeMap<String, Resolved> = BTreeMap::new();
        let mut found = self.sources.clone();
        let mut lock = self.lock.clone();
        for (index, field, spec) in self.wanted() {
            let text = spec_text(&spec);
            if let Some(known) = found.get(&(index, field)) {
                // The cache knows it from another recipe, or the lock was removed.
                if spec.pin.is_none() && known.remote {
                    lock.sources.entry(text).or_insert(known.digest);
                }
                continue;
            }
            let resolved = match fetched.get(&text) {
                Some(resolved) => resolved.clone(),
                None => resolver
                    .fetch(&spec, self.pin(&spec))
                    .map_err(|e| self.source_error(index, field, e))?,
            };
            if spec.pin.is_none() && resolved.remote {
                lock.sources.insert(text.clone(), resolved.digest);
            }
            fetched.insert(text, resolved.clone());
            found.insert((index, field), resolved);
        }
        drop(resolver);
        if lock != self.lock
            && let Err(error) = lock.write(&self.recipe.path)
        {
            tracing::warn!("the sources are not pinned: {error:#}");
        }
        self.lock = lock;
        self.sources = found;
        Ok(())
    }

    /// What is known of every node.
    pub fn standings(&self) -> Vec<Standing> {
        self.plan.standings(&self.cache, &self.sources, &|_| false)
    }

    /// The entry of a node that is done.
    pub fn entry(&self, node: usize) -> Result<Arc<Entry>> {
        let standing = self.standings().swap_remove(node);
        let (name, reason) = (&self.plan.nodes[node].name, &standing.reason);
        standing.entry.with_context(|| match standing.verdict {
            Verdict::Skipped => format!("`{name}` does not run: {reason}"),
            _ => format!("`{name}` has not run: {reason}; `levain run` runs it"),
        })
    }

    /// The node that a person names, and the output where one is named. `align.tuned` is the last round's, or that of the last one
    /// that is not skipped; `sft/tokens` is a preparation.
    pub fn find(&self, name: &str) -> Option<(usize, String)> {
        if let Some(node) = self.plan.find(name) {
            return Some((node, String::new()));
        }
        if let Some((stage, preparation)) = name.split_once('/') {
            let (stage, _) = self.last(self.recipe.find(stage)?)?;
            let full = format!("{}/{preparation}", self.plan.nodes[stage].name);
            return self.plan.find(&full).map(|node| (node, String::new()));
        }
        self.last(self.recipe.find(name)?)
    }

    /// The last of some stages that is not skipped.
    fn last(&self, mut stages: Vec<(usize, String)>) -> Option<(usize, String)> {
        if stages.len() > 1 {
            let standings = self.standings();
            let skipped = |stage: usize| standings[stage].verdict == Verdict::Skipped;
            while stages.len() > 1 && stages.last().is_some_and(|(stage, _)| skipped(*stage)) {
                stages.pop();
            }
        }
        stages.pop()
    }

    /// The artifact that `stage` or `stage.output` names, when it is in the cache.
    pub fn artifact(&self, reference: &str) -> Result<Digest> {
        let Some((node, output)) = self.find(reference) else {
            let names = self.plan.nodes.iter().map(|n| n.name.as_str());
            let near = crate::diagnostic::nearest(reference, names);
            bail!(
                "there is no stage `{reference}`{}",
                near.map(|w| format!("; did you mean `{w}`?"))
                    .unwrap_or_default()
            );
        };
        let name = &self.plan.nodes[node].name;
        let contract = self.plan.nodes[node].contract;
        let Some(found) = contract.output(&output) else {
            let names: Vec<_> = contract.outputs.iter().map(|o| o.name).collect();
            bail!(
                "`{name}` has no output `{output}`; its outputs are {}",
                names.join(", ")
            );
        };
        let entry = self.entry(node)?;
        entry
            .outputs
            .get(found.name)
            .copied()
            .with_context(|| format!("`{name}` did not make `{}`", found.name))
    }

    /// The locks of this recipe's runs, the newest first.
    pub fn past_runs(&self) -> impl Iterator<Item = RunLock> {
        let own = self.recipe.path.canonicalize().ok();
        let mut folders: Vec<PathBuf> = std::fs::read_dir(self.cache.runs())
            .into_iter()
            .flatten()
            .flatten()
            .map(|e| e.path())
            .collect();
        folders.sort();
        folders
            .into_iter()
            .rev()
            .filter_map(|folder| RunLock::read(&folder).ok())
            .filter(move |lock| own.as_ref() == Some(&lock.path))
    }

    /// The files of a node's sources, as stages take them; none while one of them is not here.
    pub(crate) fn files(&self, node: usize) -> Option<BTreeMap<String, Vec<SourceFile>>> {
        let fields = self.plan.nodes[node].sources.keys();
        let files = |field: &&'static str| {
            let resolved = self.sources.get(&(node, *field))?;
            let list = resolved.files.iter().map(|f| SourceFile {
                name: f.name.clone(),
                path: f.path.clone(),
                digest: f.digest,
            });
            Some(((*field).to_owned(), list.collect()))
        };
        fields.map(files).collect()
    }

    /// Digests of files by their place and times; saves hashing.
    pub fn memo(&self) -> &Memo {
        &self.memo
    }

    fn pin(&self, spec: &SourceSpec) -> Option<Digest> {
        spec.pin
            .or_else(|| self.lock.sources.get(&spec_text(spec)).copied())
    }

    fn wanted(&self) -> Vec<(usize, &'static str, SourceSpec)> {
        let nodes = self.plan.nodes.iter().enumerate();
        nodes
            .filter(|(i, _)| self.only.as_ref().is_none_or(|only| only[*i]))
            .flat_map(|(i, n)| n.sources.iter().map(move |(f, s)| (i, *f, s.clone())))
            .collect()
    }

    /// Where the recipe says what a node is: the value of `word`, a field or a port of the node, where that is given; else the name of the
    /// stage. A preparation is said where its stage is.
    pub fn place(&self, node: usize, word: Option<&str>) -> Option<Place> {
        let found = &self.plan.nodes[node];
        let stage = self.recipe.stages.get(found.owner.unwrap_or(node))?;
        let given = |word: &str| stage.spans.get(word).copied();
        let own = word.and_then(|word| match found.owner {
            None => given(word),
            Some(_) if found.contract.field(word).is_some() => given(word),
            Some(_) => {
                let name = found.name.strip_prefix(&stage.name)?;
                let name = name.strip_prefix(" › ")?.split('[').next()?;
                let mut all = stage.contract.preparations.iter();
                let preparation = all.find(|preparation| preparation.name == name)?;
                let mut inputs = preparation.inputs.iter();
                match inputs.find(|(port, _)| *port == word)?.1 {
                    From::Port(port) | From::TokenizerOf(port) => given(port),
                    From::PortOr(port, other) => given(port).or_else(|| given(other)),
                    From::Preparation(_) => None,
                }
            }
        });
        Place::of(own.unwrap_or(stage.span), &self.recipe.sources)
    }

    /// A source that can't be had, at its place in the recipe.
    fn source_problem(&self, node: usize, field: &str, error: &anyhow::Error) -> Option<Problem> {
        let span = self.recipe.stages.get(node)?.spans.get(field)?;
        Some(Problem::at("source", *span, format!("{error:#}")))
    }

    fn source_error(&self, node: usize, field: &str, error: anyhow::Error) -> anyhow::Error {
        match self.source_problem(node, field, &error) {
            Some(problem) => Problems::new(self.recipe.sources.clone(), vec![problem]).into(),
            None => error,
        }
    }
}

/// A source as it stands in locks and messages.
pub fn spec_text(spec: &SourceSpec) -> String {
    let alternatives = spec.alternatives.iter().map(|files| {
        files
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(" + ")
    });
    alternatives.collect::<Vec<_>>().join(" | ")
}

impl BlobStore for Cache {
    fn path_of(&self, digest: &Digest) -> Option<PathBuf> {
        let path = self.object_path(*digest);
        let size = std::fs::metadata(&path).ok()?.len();
        self.has(*digest, size).then_some(path)
    }

    fn import(&self, file: &Path, digest: &Digest) -> Result<PathBuf> {
        self.adopt(file, *digest)
    }

    fn temp_dir(&self) -> Result<tempfile::TempDir> {
        self.private_folder()
    }

    fn partial_dir(&self) -> Result<PathBuf> {
        let path = self.root().join("partial").join("downloads");
        std::fs::create_dir_all(&path)
            .with_context(|| format!("{} can't be made", path.display()))?;
        Ok(path)
    }

    fn read_note(&self, name: &str) -> Option<Vec<u8>> {
        std::fs::read(self.root().join("sources").join(name)).ok()
    }

    fn write_note(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let text = std::str::from_utf8(bytes).context("a note is text")?;
        crate::lock::write_whole(&self.root().join("sources").join(name), text)
    }
}
