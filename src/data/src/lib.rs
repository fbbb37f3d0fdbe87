//! Rows: read from sources, stored as Arrow, split, put into chat templates, tokenized and masked; metrics of text.
//!
//! What is not here: tensors, recipes, the cache, events. Everything takes paths, values and closures and answers with
//! values; the same input gives the same bytes, on any number of threads.

pub mod agreement;
pub mod best_of_n;
pub mod candidates;
pub mod classification;
mod column;
pub mod comparison;
pub mod completions;
pub mod contrast;
mod csv;
pub mod cut;
pub mod encode;
pub mod exam;
pub mod fill;
mod filter;
mod format;
mod ipc;
mod json;
pub mod judging;
pub mod layout;
pub mod metrics;
pub mod mismatch;
pub mod overoptimization;
mod parquet;
mod python;
pub mod random;
pub mod read;
mod record;
mod row;
pub mod rule;
mod shape;
mod source;
pub mod split;
pub mod store;
pub mod template;
pub mod tokenize;
pub mod tokenize_completions;
pub mod tokenize_labelled;
pub mod tokenize_pieces;
pub mod tokens;
pub mod train_tokenizer;
pub mod vectors;

pub use completions::{Completion, Completions, CompletionsSummary, CompletionsWriter};
pub use encode::{Encoded, Encoder, Group, LossOn, Piece};
pub use format::Format;
pub use layout::{Layout, Message, Prompt};
pub use python::Moment;
pub use random::Stream;
pub use read::{ReadOptions, ReadProgress, ReadReport, peek, read_files, read_into};
pub use row::{Cell, Row};
pub use split::{Portion, Split, SplitReport, split, split_dataset};
pub use store::{Dataset, DatasetSummary, DatasetWriter, Lengths};
pub use template::{ChatTemplate, Rendered, SpecialTokens};
pub use tokenize::{TokenizeOptions, TokenizeReport, Truncation, tokenize};
pub use tokenize_completions::{CompletionsOptions, CompletionsReport, tokenize_completions};
pub use tokenize_pieces::{PiecesReport, tokenize_pieces};
pub use tokens::{Tokens, TokensRow, TokensSummary, TokensWriter};
pub use vectors::{Vectors, VectorsWriter};
