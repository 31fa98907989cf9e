//! The kernel command line as typed settings.
//!
//! | word | meaning |
//! |---|---|
//! | `loglevel=error\|warn\|info\|debug` | least important log line that is written |
//! | `clear_page=NAME` | how pages are zeroed and copied, instead of the fastest by measurement |
//! | `numa=fake=N` | cut the memory into N nodes, 1 to 8, of about equal size |
//! | `crash=panic\|stack\|fault\|hang` | end badly on purpose once the kernel is up |
//!
//! A word nobody knows costs one warning and nothing else.

use spin::Once;

use crate::{arch::page_ops::PageOps, log::Level, panic::Crash};

/// The settings of this boot.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Config {
    log_level: Option<Level>,
    page_ops: Option<PageOps>,
    crash: Option<Crash>,
    nr_nodes: Option<u32>,
}

static CONFIG: Once<Config> = Once::new();

/// Returns the settings. The defaults, before [`init`].
#[must_use]
pub fn config() -> Config {
    CONFIG.get().copied().unwrap_or_default()
}

/// Reads the command line's words, sets the log level at once, and warns about words that mean nothing.
pub fn init(words: impl Iterator<Item = &'static [u8]> + Clone) {
    let mut config = Config::default();
    let mut unknown = |_: &[u8]| {};
    words
        .clone()
        .for_each(|word| config.take_word(word, &mut unknown));
    if let Some(level) = config.log_level {
        crate::log::set_limit(level);
    }
    // A second pass for the warnings, so that `loglevel=` decides about them wherever it stands.
    words.for_each(|word| {
        Config::default().take_word(word, &mut |word| {
            crate::log::warn!("config: unknown word `{}`", word.escape_ascii());
        });
    });
    CONFIG.call_once(|| config);
}

impl Config {
    /// How pages are to be zeroed and copied, if the command line says.
    #[must_use]
    pub const fn page_ops(self) -> Option<PageOps> {
        self.page_ops
    }

    /// The bad end that the command line asks for.
    #[must_use]
    pub const fn crash(self) -> Option<Crash> {
        self.crash
    }

    /// Into how many nodes the memory is to be cut: 1 unless the command line says otherwise.
    #[must_use]
    pub fn nr_nodes(self) -> u32 {
        self.nr_nodes.unwrap_or(1)
    }

    fn take_word(&mut self, word: &'static [u8], unknown: &mut dyn FnMut(&'static [u8])) {
        let parts = core::str::from_utf8(word)
            .ok()
            .and_then(|word| word.split_once('='));
        let known = match parts {
            Some(("loglevel", level)) => set(&mut self.log_level, Level::from_name(level)),
            Some(("clear_page", name)) => set(&mut self.page_ops, PageOps::from_name(name)),
            Some(("crash", name)) => set(&mut self.crash, Crash::from_name(name)),
            Some(("numa", nodes)) => set(&mut self.nr_nodes, nr_fake_nodes(nodes)),
            _ => false,
        };
        if !known {
            unknown(word);
        }
    }
}

/// Reads `fake=N`. Linux's forms that give sizes instead of a number are not known here.
fn nr_fake_nodes(text: &str) -> Option<u32> {
    let nr = text.strip_prefix("fake=")?.parse().ok()?;
    (1..=mm::MAX_NODES)
        .contains(&mm::addr::to_usize(u64::from(nr)))
        .then_some(nr)
}

/// Stores `value` and returns true, or returns false if there is none.
fn set<T>(slot: &mut Option<T>, value: Option<T>) -> bool {
    let known = value.is_some();
    *slot = value.or(slot.take());
    known
}
