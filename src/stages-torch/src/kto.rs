//! `kto`: the method from the parameters.

use anyhow::Result;
use engine::event::Level;
use engine::job::{Drafts, Job, Reporter};
use kinds::kto::Kto;
use ml::preference::Method;
use ml::preference::free;

use crate::completions::Groups;
use crate::preference::learn;

pub(crate) fn run(job: &Job, cx: &dyn Reporter) -> Result<Drafts> {
    let params: Kto = job.params()?;
    let groups = Groups::open(job.input("mismatched")?, &kinds::kto::CONTRACT, "data")?;
    let mut desirable = 0;
    for index in 0..groups.len() {
        desirable += usize::from(groups.group(index)?.1 == 1.0);
    }
    let (level, text) = balance(&params, desirable, groups.len() - desirable);
    cx.note(level, &text);
    let method = Method::Kto(free::Kto {
        beta: params.beta,
        desirable_weight: params.desirable_weight,
        undesirable_weight: params.undesirable_weight,
        apo_zero: params.loss == "apo_zero",
    });
    learn(job, cx, &params.training, groups, method)
}

/// How the two kinds of rows are weighted against each other.
fn balance(params: &Kto, desirable: usize, undesirable: usize) -> (Level, String) {
    if desirable == 0 || undesirable == 0 {
        let (all, none) = match undesirable {
            0 => ("desirable", "undesirable"),
            _ => ("undesirable", "desirable"),
        };
        let count = desirable + undesirable;
        return (
            Level::Warning,
            format!("all {count} rows are {all}: nothing is learned from {none} completions"),
        );
    }
    let ratio = params.desirable_weight * desirable as f64
        / (params.undesirable_weight * undesirable as f64);
    let counts = format!(
        "{desirable} desirable and {undesirable} undesirable rows, weighted {ratio:.2} : 1"
    );
    // Equation 8 of the paper, with room for the two digits of TRL's advice.
    if (0.995..=1.335).contains(&ratio) {
        return (Level::Info, counts);
    }
    let even = undesirable as f64 * params.undesirable_weight / desirable as f64;
    (
        Level::Warning,
        format!(
            "{counts}; KTO's authors advise 1 to 4/3, that is a `desirable_weight` from {even:.2} to {:.2}",
            even * 4.0 / 3.0
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(weights: [f64; 2], desirable: usize, undesirable: usize) -> (Level, String) {
        let fields = [
            ("learning_rate", 1.0),
            ("warmup", 0.0),
            ("epochs", 1.0),
            ("layer_decay", 1.0),
            ("weight_decay", 0.0),
            ("beta1", 0.9),
            ("beta2", 0.9),
            ("epsilon", 1e-8),
            ("max_grad_norm", 1.0),
            ("beta", 0.1),
            ("desirable_weight", weights[0]),
            ("undesirable_weight", weights[1]),
        ];
        let mut params = serde_json::json!({
            "schedule": "linear", "batch": 2, "seed": 1, "micro_batch": 1, "snapshot_seconds": 60, "max_steps": null,
            "checkpointing": false, "train": "all", "learning_rates": {}, "unfreeze_every": null, "optimizer": "adamw",
            "optimizer_state": "device", "max_length": 8, "truncation": "drop", "loss": "kto",
        });
        for (name, value) in fields {
            params[name] = value.into();
        }
        let params = serde_json::from_value(params).unwrap();
        balance(&params, desirable, undesirable)
    }

    #[test]
    fn weights_are_held_against_what_the_paper_advises() {
        // TRL 1.16 on 10 and 20 rows: desirable_weight in [2.0, 2.66].
        let (level, text) = said([1.0, 1.0], 10, 20);
        assert!(
            level == Level::Warning && text.contains("from 2.00 to 2.67"),
            "{text}"
        );
        let (level, text) = said([2.0, 1.0], 10, 20);
        assert!(
            level == Level::Info && text.contains("weighted 1.00 : 1"),
            "{text}"
        );
        assert!(said([2.66, 1.0], 10, 20).0 == Level::Info);
        assert!(said([1.0, 1.0], 7, 7).0 == Level::Info);
        let (level, text) = said([1.0, 1.0], 0, 7);
        assert!(
            level == Level::Warning && text.contains("all 7 rows are undesirable"),
            "{text}"
        );
    }
}
