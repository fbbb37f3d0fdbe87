//! A snapshot of a training run: trained parameters, optimizer, and the place in the data.

use crate::optimizer::Optimizer;
use crate::params::Params;
use crate::tensors;
use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use tch::no_grad;

/// The version of a snapshot's files.
pub const VERSION: u32 = 3;
const WEIGHTS: &str = "weights.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const CURSOR: &str = "state.json";

/// Where a run stands. Every random draw of a run is a function of the seed and the step, so this is all there is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cursor {
    /// The version of this format.
    pub version: u32,
    /// The seed of the run.
    pub seed: u64,
    /// The number of rows of the data.
    pub rows: usize,
    /// Rows to a step.
    pub batch: usize,
    /// Steps that were taken.
    pub steps: usize,
}

impl Cursor {
    /// The cursor after `steps` steps.
    pub fn new(seed: u64, rows: usize, batch: usize, steps: usize) -> Cursor {
        Cursor {
            version: VERSION,
            seed,
            rows,
            batch,
            steps,
        }
    }
}

/// The file of the cursor.
#[derive(Serialize, Deserialize)]
struct Stored {
    #[serde(flatten)]
    cursor: Cursor,
    /// Steps of the optimizer, whose corrections depend on them: an update of reinforcement learning takes several, or none.
    optimizer_steps: u64,
    /// Those of parameters that began later.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    later: BTreeMap<String, u64>,
}

/// Writes a snapshot into the folder `folder`, which is made. Whoever calls it publishes the folder as a whole.
pub fn save(folder: &Path, params: &Params, optimizer: &Optimizer, cursor: &Cursor) -> Result<()> {
    std::fs::create_dir_all(folder)
        .with_context(|| format!("cannot make the folder {}", folder.display()))?;
    let weights: Vec<_> = params
        .trained()
        .map(|(name, tensor)| (name.to_owned(), tensor.detach()))
        .collect();
    tensors::write(&folder.join(WEIGHTS), &weights, &[])?;
    tensors::write(&folder.join(OPTIMIZER), &optimizer.stored(), &[])?;
    let path = folder.join(CURSOR);
    let stored = Stored {
        cursor: cursor.clone(),
        optimizer_steps: optimizer.steps(),
        later: optimizer.later(),
    };
    std::fs::write(&path, serde_json::to_vec_pretty(&stored)?)
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Reads the cursor of a snapshot, and how many steps its optimizer has taken.
fn stored(folder: &Path) -> Result<Stored> {
    let path = folder.join(CURSOR);
    let text = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let stored: Stored = serde_json::from_slice(&text)
        .with_context(|| format!("{} is not the cursor of a snapshot", path.display()))?;
    ensure!(
        stored.cursor.version == VERSION,
        "{} has the version {}, this program writes {VERSION}; delete the snapshot to begin anew",
        path.display(),
        stored.cursor.version
    );
    Ok(stored)
}

/// Puts a snapshot's weights and optimizer states back. Its trained parameters must be those of `params`, with their shapes.
pub fn restore(folder: &Path, params: &Params, optimizer: &mut Optimizer) -> Result<Cursor> {
    let Stored {
        cursor,
        optimizer_steps,
        later,
    } = stored(folder)?;
    let path = folder.join(WEIGHTS);
    let stored = tensors::read_file(&path)?;
    let trained = params.trained().count();
    ensure!(
        stored.len() == trained,
        "{} holds {} parameters, but the run trains {trained}",
        path.display(),
        stored.len()
    );
    no_grad(|| -> Result<()> {
        for (name, tensor) in &stored {
            let Some(param) = params.get(name) else {
                bail!("{}: the run has no parameter {name:?}", path.display());
            };
            ensure!(
                param.size() == tensor.size() && param.kind() == tensor.kind(),
                "{}: {name:?} is {:?} of {:?}, but the run's is {:?} of {:?}",
                path.display(),
                tensor.size(),
                tensor.kind(),
                param.size(),
                param.kind()
            );
            param.detach().f_copy_(tensor)?;
        }
        Ok(())
    })?;
    let states = tensors::read_file(&folder.join(OPTIMIZER))?;
    optimizer.restore(params, optimizer_steps, &later, states)?;
    Ok(cursor)
}
