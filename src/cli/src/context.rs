//! What every command starts from: global options, the cache's place, a recipe opened with it.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Result;
use engine::cache::{Cache, locate};
use engine::contract::Contracts;
use engine::known::Looks;
use engine::session::Session;

use crate::failure::Failure;
use crate::options::{Global, RecipeArgs};
use crate::style::Style;

/// What every command starts from.
pub(crate) struct Context {
    /// `--cache`.
    cache: Option<PathBuf>,
    /// How often `-v` was given.
    pub verbose: u8,
    /// Whether only failures are told.
    pub quiet: bool,
    /// Colours on standard output.
    pub out: Style,
    /// Colours on standard error.
    pub err: Style,
    /// What was printed, in place of standard output.
    #[cfg(test)]
    pub printed: Option<std::sync::Mutex<String>>,
}

impl Context {
    pub fn new(global: &Global) -> Self {
        Self {
            cache: global.cache.clone(),
            verbose: global.verbose,
            quiet: global.quiet,
            out: Style::of(global.color, &std::io::stdout()),
            err: Style::of(global.color, &std::io::stderr()),
            #[cfg(test)]
            printed: None,
        }
    }

    /// Every kind that a recipe may name, and what is tried of its fields.
    pub fn contracts(&self) -> Contracts {
        Contracts {
            trials: stages_data::trials(),
            ..kinds::contracts()
        }
    }

    /// Where the cache is for a recipe in `folder`; it may not exist yet.
    pub fn cache_folder(&self, folder: &Path) -> PathBuf {
        let environment = std::env::var_os("LEVAIN_CACHE")
            .filter(|v| !v.is_empty())
            .map(PathBuf::from);
        locate(self.cache.as_deref(), environment.as_deref(), folder)
    }

    /// The cache that is there already, for commands without a recipe.
    pub fn existing_cache(&self) -> Result<Cache> {
        let folder = self.cache_folder(Path::new("."));
        if !folder.join("entries").is_dir() {
            return Err(Failure::usage(format_args!(
                "there is no cache at {}: run a recipe first, or name another cache with `--cache DIR` or LEVAIN_CACHE",
                folder.display()
            )));
        }
        Cache::open(&folder)
    }

    /// Reads the recipe and looks at what is there.
    pub fn open(&self, args: &RecipeArgs) -> Result<Session> {
        let path = &args.recipe;
        if !path.is_file() {
            let way = match path.is_dir() {
                true => "a recipe is a file: name one in it",
                false => "is the path right? `levain init` writes a first recipe",
            };
            return Err(Failure::usage(format_args!(
                "there is no recipe at {}: {way}",
                path.display()
            )));
        }
        let folder = path
            .parent()
            .filter(|p| !p.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        let read = || engine::recipe::read(path, &args.set, self.contracts()).map_err(mistake);
        let cache_folder = self.cache_folder(folder);
        if !cache_folder.join("entries").is_dir() {
            // A recipe with a mistake must not leave a new cache behind.
            read()?;
        }
        let cache = Cache::open(&cache_folder)?;
        Session::open(path, &args.set, self.contracts(), cache)
            .map_err(|error| read().err().unwrap_or(error))
    }

    /// Writes a result to standard output. A reader that has gone away (`levain plan | head`) is no failure.
    pub fn print(&self, text: &str) -> Result<()> {
        #[cfg(test)]
        if let Some(printed) = &self.printed {
            printed
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner)
                .push_str(text);
            return Ok(());
        }
        let mut out = std::io::stdout().lock();
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Writes a result for programs.
    pub fn print_json(&self, value: &serde_json::Value) -> Result<()> {
        self.print(&format!("{value:#}\n"))
    }

    /// Says something on standard error, unless only failures are wanted.
    pub fn say(&self, text: &str) {
        if !self.quiet {
            crate::terminal::say(text);
        }
    }
}

/// The ways to look at sources and artifacts before anything runs.
pub(crate) fn looks() -> Looks {
    Looks {
        peeks: stages_data::peeks(),
        glances: stages_data::glances(),
        facts: kinds::memory::facts,
    }
}

/// A recipe that can't be read is a mistake of whoever named it, like one that is wrong.
fn mistake(error: anyhow::Error) -> anyhow::Error {
    if error.is::<engine::diagnostic::Problems>() {
        error
    } else {
        Failure::usage(format_args!("{error:#}"))
    }
}

/// Columns of the terminal that `stream` is, if it is one.
pub(crate) fn terminal_width(stream: libc::c_int) -> Option<usize> {
    // SAFETY: TIOCGWINSZ writes a `winsize`, which is plain old data for which zeroes are valid.
    let size = unsafe {
        let mut size: libc::winsize = std::mem::zeroed();
        if libc::ioctl(stream, libc::TIOCGWINSZ, &mut size) != 0 {
            return None;
        }
        size
    };
    (size.ws_col > 0).then_some(usize::from(size.ws_col))
}

/// The width that texts on standard output are laid out for.
pub(crate) fn width() -> usize {
    terminal_width(libc::STDOUT_FILENO)
        .unwrap_or(100)
        .clamp(40, 160)
}
