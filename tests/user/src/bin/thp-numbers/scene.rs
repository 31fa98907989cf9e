//! One huge page, the processes that map it, and what a step changes.

use std::{io, ops::Range};

use user::{HUGE, PAGE, mapping::Mapping};

use crate::{
    observe::{self, COUNTERS, Counts, PAGES, SIZES, SMAPS, SizeFiles, Sizes, Vmstat, Words, runs},
    rows::Order,
    twin::{Command, Twin},
};

/// The page, this process (A) and its children (B, C).
#[derive(Debug)]
pub(crate) struct Scene {
    block: Mapping,
    /// Frame of subpage 0.
    first: u64,
    twins: Vec<Twin>,
    size_files: SizeFiles,
    vmstat: Vmstat,
    /// What all steps so far added to the counters.
    totals: Counts,
    flags: Words,
    counts: Words,
}

/// Who takes a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Who {
    A,
    B,
    C,
}

/// What is printed after a step besides the counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Show {
    /// Every view of the page.
    All,
    /// Its mapcounts and flags.
    Pages,
}

impl Scene {
    /// Maps the page and writes it once, as row `row`.
    pub(crate) fn new(row: &str) -> io::Result<Self> {
        let block = Mapping::apart(HUGE)?;
        block.advise(0..HUGE, libc::MADV_HUGEPAGE)?;
        // The tables above the PMD stay: whether they were there already depends on the address.
        block.write(0, 1);
        block.advise(0..HUGE, libc::MADV_DONTNEED)?;
        let mut scene = Self {
            block,
            first: 0,
            twins: Vec::new(),
            size_files: SizeFiles::open()?,
            vmstat: Vmstat::open()?,
            totals: Counts::default(),
            flags: Words::open("/proc/kpageflags")?,
            counts: Words::open("/proc/kpagecount")?,
        };
        scene.warm_up()?;
        let sizes = scene.count(row, |scene| {
            scene.block.touch();
            Ok(())
        })?;
        scene.follow()?;
        scene.flags.fetch(scene.first)?;
        scene.counts.fetch(scene.first)?;
        scene.show(row, Show::All)?;
        sizes.print(row);
        Ok(scene)
    }

    /// Touches all that measuring touches, so that it changes nothing later.
    fn warm_up(&mut self) -> io::Result<()> {
        for _ in 0..2 {
            self.vmstat.read()?;
            self.flags.fetch(self.first)?;
            self.counts.fetch(self.first)?;
            self.size_files.read()?;
            for twin in &mut self.twins {
                twin.ask(&Command::Ping)?;
            }
        }
        Ok(())
    }

    /// Address of subpage 0.
    pub(crate) fn addr(&self) -> usize {
        self.block.addr()
    }

    /// The page's memory.
    pub(crate) fn block(&self) -> &Mapping {
        &self.block
    }

    /// Finds the frames that the page is in now.
    pub(crate) fn follow(&mut self) -> io::Result<()> {
        let words = observe::pagemap(pid(), self.block.addr(), 1)?;
        self.first = words[0] & ((1 << linux_abi::page::pm::PFN_BITS) - 1);
        Ok(())
    }

    fn range(&self) -> Range<usize> {
        self.addr()..self.addr() + HUGE
    }

    /// Makes a child that shares the page.
    pub(crate) fn fork(&mut self) -> io::Result<()> {
        self.twins.push(Twin::fork(&self.block)?);
        self.warm_up()
    }

    /// Shows the page as it is.
    pub(crate) fn look(&mut self, row: &str, show: Show) -> io::Result<()> {
        self.flags.fetch(self.first)?;
        self.counts.fetch(self.first)?;
        self.show(row, show)
    }

    /// Has `who` do something to the page, and shows what that changed.
    pub(crate) fn step(&mut self, row: &str, who: Who, command: &Command, show: Show) -> io::Result<()> {
        self.act(row, show, |scene| scene.order(who, command))
    }

    /// Does `action`, and shows what that changed.
    pub(crate) fn act(
        &mut self,
        row: &str,
        show: Show,
        action: impl FnOnce(&mut Self) -> io::Result<()>,
    ) -> io::Result<()> {
        self.warm_up()?;
        let sizes = self.count(row, action)?;
        self.show(row, show)?;
        if show == Show::All {
            sizes.print(row);
        }
        Ok(())
    }

    /// Has what waits to be split looked at, which must fail, and shows how the page is then. Linux repeats the pass as
    /// long as it finds anything to give back, so it may fail more than once.
    pub(crate) fn pass(&mut self, row: &str, mut shrink: Order) -> io::Result<()> {
        self.warm_up()?;
        let before = self.vmstat.read()?;
        shrink.give()?;
        let [_, _, split, failed, ..] = changes(before, self.vmstat.read()?);
        println!("{row} thp_split_page={split:+} failed={}", failed > 0);
        self.look(row, Show::Pages)
    }

    fn order(&mut self, who: Who, command: &Command) -> io::Result<()> {
        match who {
            Who::A => command.apply(&self.block),
            Who::B => self.twins[0].ask(command),
            Who::C => self.twins[1].ask(command),
        }
    }

    /// Does `action` between two readings of the counters, and keeps what became of the frames. Returns what became of
    /// this process.
    fn count(
        &mut self,
        row: &str,
        action: impl FnOnce(&mut Self) -> io::Result<()>,
    ) -> io::Result<SizeChange> {
        let sizes = self.size_files.read()?;
        let before = self.vmstat.read()?;
        action(self)?;
        let after = self.vmstat.read()?;
        self.flags.fetch(self.first)?;
        self.counts.fetch(self.first)?;
        let sizes = SizeChange(sizes, self.size_files.read()?);
        print!("{row} change");
        for ((name, total), change) in COUNTERS.iter().zip(&mut self.totals).zip(changes(before, after)) {
            *total += change;
            print!(" {name}={change:+}");
        }
        println!();
        Ok(sizes)
    }

    fn show(&self, row: &str, show: Show) -> io::Result<()> {
        let (flags, counts) = (self.flags.get(), self.counts.get());
        let mapped = counts.iter().filter(|&&count| count > 0).count();
        let free = flags.iter().filter(|&&flags| observe::is_free(flags)).count();
        let (entries, pmds) = self.entries()?;
        let [.., anon, thps] = self.totals;
        println!(
            "{row} pages mc0={} mc7={} mc511={} mapped={mapped} entries={entries} pmds={pmds} anon={anon} thps={thps} \
             free={free}",
            counts[0], counts[7], counts[511]
        );
        // A frame that was freed may be anybody's by the next line; whether it lies in a CPU's list is nobody's business.
        let words = flags.iter().map(|&flags| match flags {
            flags if observe::is_free(flags) => "free".to_owned(),
            flags => format!("{flags:#x}"),
        });
        println!("{row} flags {}", runs(&words.collect::<Vec<_>>()));
        if show == Show::All {
            for (name, pid) in self.people() {
                self.show_process(row, name, pid)?;
            }
        }
        Ok(())
    }

    fn people(&self) -> impl Iterator<Item = (char, i32)> {
        let pids = std::iter::once(pid()).chain(self.twins.iter().map(Twin::pid));
        ('A'..='C').zip(pids)
    }

    fn show_process(&self, row: &str, name: char, pid: i32) -> io::Result<()> {
        let sums = observe::smaps(pid, &self.range())?;
        let sums = SMAPS.iter().zip(sums).map(|(name, kb)| format!(" {name}={kb}"));
        println!("{row} smaps {name}{}", sums.collect::<String>());
        let words = observe::pagemap(pid, self.addr(), PAGES)?;
        let words = (self.first..)
            .zip(words)
            .map(|(own, word)| observe::describe_entry(word, own));
        println!("{row} pagemap {name} {}", runs(&words.collect::<Vec<_>>()));
        Ok(())
    }

    /// Page-table entries of all processes that map a part of the page, and how many of them are PMDs.
    fn entries(&self) -> io::Result<(usize, usize)> {
        let (mut entries, mut pmds) = (0, 0);
        for (_, pid) in self.people() {
            let words = observe::pagemap(pid, self.addr(), PAGES)?;
            let own = (self.first..).zip(words).filter(|&(own, word)| {
                word >> linux_abi::page::pm::PRESENT & 1 == 1
                    && word & ((1 << linux_abi::page::pm::PFN_BITS) - 1) == own
            });
            let is_huge = observe::smaps(pid, &self.range())?[SMAPS.len() - 1] > 0;
            entries += if is_huge { 1 } else { own.count() };
            pmds += usize::from(is_huge);
        }
        Ok((entries, pmds))
    }

    /// The first page of `pages` whose byte is not the one that was written.
    pub(crate) fn damage(&self, pages: Range<usize>) -> Option<usize> {
        self.block
            .first_damage(pages.start * PAGE..pages.end * PAGE)
            .map(|offset| offset / PAGE)
    }
}

/// This process.
pub(crate) fn pid() -> i32 {
    std::process::id().cast_signed()
}

/// The sizes of this process before and after a step.
#[derive(Debug)]
#[must_use]
struct SizeChange(Sizes, Sizes);

impl SizeChange {
    fn print(&self, row: &str) {
        let Self(before, after) = *self;
        let changes = SIZES.iter().zip(changes(before, after));
        let changes = changes.map(|(name, change)| format!(" {name}={change:+}"));
        println!("{row} sizes{}", changes.collect::<String>());
    }
}

fn changes<const N: usize>(before: [i64; N], after: [i64; N]) -> [i64; N] {
    std::array::from_fn(|index| after[index] - before[index])
}
