//! The states of a node and the one function that changes them.

/// Where a node is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Nothing asked for it yet.
    Unknown,
    /// It is wanted; something it needs is not done.
    Want,
    /// Everything it needs is done.
    Ready,
    /// It waits for a place in its pool.
    Queued,
    /// It works.
    Running,
    /// It waits for a person; a later run goes on.
    Waiting,
    /// Its outputs are in the cache.
    Done,
    /// It failed.
    Failed,
    /// It will not run: something it needs failed or waits, a `stop_if` held, or the run was stopped.
    Skipped,
}

impl State {
    /// Whether nothing will happen to it any more in this run.
    pub fn is_final(self) -> bool {
        matches!(
            self,
            Self::Waiting | Self::Done | Self::Failed | Self::Skipped
        )
    }

    fn may_become(self, next: State) -> bool {
        use State::*;
        matches!(
            (self, next),
            (Unknown, Want)
                | (Want, Ready | Skipped)
                | (Ready, Done | Queued | Skipped | Failed)
                | (Queued, Running | Skipped)
                | (Running, Done | Failed | Waiting | Skipped)
        )
    }
}

/// The states of all nodes.
#[derive(Debug)]
pub struct States(Vec<State>);

impl States {
    /// All unknown.
    pub fn new(count: usize) -> Self {
        Self(vec![State::Unknown; count])
    }

    /// The state of node `index`.
    pub fn get(&self, index: usize) -> State {
        self.0[index]
    }

    /// Changes the state of node `index`; the only way to do so.
    pub fn set(&mut self, index: usize, next: State) {
        let now = self.0[index];
        assert!(
            now.may_become(next),
            "BUG: a node went from {now:?} to {next:?}"
        );
        self.0[index] = next;
    }

    /// How many nodes are in `state`.
    pub fn count(&self, state: State) -> usize {
        self.0.iter().filter(|s| **s == state).count()
    }

    /// Whether every wanted node is final.
    pub fn settled(&self) -> bool {
        self.0.iter().all(|s| s.is_final() || *s == State::Unknown)
    }
}
