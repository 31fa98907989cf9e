//! The counter oracle: what the counters of one anonymous transparent huge page must be, by rule and by ground truth.
//!
//! [`Thp`] keeps two things side by side. The *counters* follow the DoubleMap rules as they were stated for Linux v4.5
//! to v6.1. The *mappings* are the plain truth, which process maps which subpage how. [`Thp::verify`] derives every
//! counter from the truth and compares. A test drives `mm` and a `Thp` with the same operations and then compares the
//! counters; that the rules agree with the truth is a test of its own, over random sequences.
//!
//! Where Linux and Cleave differ, this is Cleave: one entry in the deferred queue per page in its life (Linux 6.12
//! counts the same way), and none for a page that one operation unmaps completely.

/// Subpages of a huge page.
pub const N: usize = mm::ENTRIES;

/// The same, in the width of counters.
const ALL_PAGES: u32 = mm::HPAGE_PAGES;

const WORDS: usize = N.div_ceil(64);

/// Most processes that a [`Thp`] follows.
pub const MAX_MAPPERS: usize = 6;

/// A set of subpages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Subpages([u64; WORDS]);

impl Subpages {
    /// None.
    pub const EMPTY: Self = Self([0; WORDS]);
    /// All.
    pub const ALL: Self = Self([if N < 64 { (1 << (N % 64)) - 1 } else { u64::MAX }; WORDS]);

    /// `nr` subpages from `first`; those past the end do not exist.
    #[must_use]
    pub fn run(first: usize, nr: usize) -> Self {
        let mut set = Self::EMPTY;
        for i in (first..N).take(nr) {
            set.insert(i);
        }
        set
    }

    /// Adds one.
    pub fn insert(&mut self, i: usize) {
        self.0[i / 64] |= 1 << (i % 64);
    }

    /// Takes one out.
    pub fn remove(&mut self, i: usize) {
        self.0[i / 64] &= !(1 << (i % 64));
    }

    /// Whether `i` is in it.
    #[must_use]
    pub fn contains(&self, i: usize) -> bool {
        self.0[i / 64] >> (i % 64) & 1 == 1
    }

    /// How many are in it.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All of them, ascending.
    pub fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        (0..N).filter(|&i| self.contains(i))
    }
}

/// How one process maps the page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mapping {
    None,
    Pmd,
    Ptes(Subpages),
}

/// One row of the golden tables: what is compared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Row {
    /// PMD mappings (C).
    pub entire: u32,
    /// The DoubleMap flag.
    pub double_map: bool,
    /// Linux's raw mapcount of subpage 0: -1 for none.
    pub raw0: i32,
    /// The same of subpage 7.
    pub raw7: i32,
    /// `page_mapcount` of subpage 0.
    pub mapcount0: u32,
    /// The same of subpage 7.
    pub mapcount7: u32,
    /// Page-table entries that map any part.
    pub total: u32,
    /// The head's reference count.
    pub refs: u32,
}

/// The statistics that belong to a row, as this page's share of the machine's.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Shares {
    /// Of `nr_anon_pages`.
    pub anon_pages: u32,
    /// Of `nr_anon_transparent_hugepages`.
    pub anon_thps: u32,
    /// Of `thp_deferred_split_page`.
    pub deferred: u32,
    /// Of `thp_split_pmd`.
    pub split_pmd: u32,
}

/// The counters of one huge page, and who really maps it.
#[derive(Clone, Debug)]
pub struct Thp {
    entire: u32,
    double_map: bool,
    /// Linux's raw counters plus one, so that they are never negative.
    subpage: [u32; N],
    refs: u32,
    shares: Shares,
    mappings: [Mapping; MAX_MAPPERS],
    /// References that are not mappings.
    pins: u32,
}

impl Thp {
    /// A page that process `mm` has just faulted in.
    #[must_use]
    pub fn map_new(mm: usize) -> Self {
        let mut thp = Self {
            entire: 1,
            double_map: false,
            subpage: [0; N],
            refs: 1,
            shares: Shares {
                anon_pages: ALL_PAGES,
                anon_thps: 1,
                deferred: 0,
                split_pmd: 0,
            },
            mappings: [Mapping::None; MAX_MAPPERS],
            pins: 0,
        };
        thp.mappings[mm] = Mapping::Pmd;
        thp
    }

    /// `parent` forks `child`, which gets the same mappings.
    ///
    /// # Panics
    /// If `child` maps the page already.
    pub fn fork(&mut self, parent: usize, child: usize) {
        assert_eq!(self.mappings[child], Mapping::None);
        match self.mappings[parent] {
            Mapping::None => {}
            Mapping::Pmd => self.map_pmd(child),
            Mapping::Ptes(set) => self.map_ptes(child, &set),
        }
    }

    /// `mm` maps the page by a PMD more. Where PTEs map it and no PMD does, both kinds are about to coexist: the bias
    /// comes first.
    ///
    /// # Panics
    /// If it maps the page already.
    pub fn map_pmd(&mut self, mm: usize) {
        assert_eq!(self.mappings[mm], Mapping::None);
        if self.entire == 0 {
            self.shares.anon_thps += 1;
            self.shares.anon_pages = ALL_PAGES;
            if self.total() > 0 {
                self.double_map = true;
                self.bias(1);
            }
        }
        self.entire += 1;
        self.refs += 1;
        self.mappings[mm] = Mapping::Pmd;
    }

    /// `mm` maps `set` by PTEs, besides what it maps so already.
    ///
    /// # Panics
    /// If it maps one of them already.
    pub fn map_ptes(&mut self, mm: usize, set: &Subpages) {
        if self.entire > 0 && !self.double_map {
            self.double_map = true;
            self.bias(1);
        }
        let mut mapped = match self.mappings[mm] {
            Mapping::None => Subpages::EMPTY,
            Mapping::Ptes(mapped) => mapped,
            Mapping::Pmd => panic!("process {mm} maps all of it by a PMD"),
        };
        for i in set.iter() {
            assert!(!mapped.contains(i), "process {mm} maps subpage {i} already");
            mapped.insert(i);
            self.shares.anon_pages += u32::from(self.subpage[i] == 0);
            self.subpage[i] += 1;
            self.refs += 1;
        }
        self.mappings[mm] = Mapping::Ptes(mapped);
    }

    /// The same page after every mapping was taken away and made again, as moving it does. The mark of pages that PMDs and
    /// PTEs map is set again only if they still do.
    #[must_use]
    pub fn mapped_anew(&self) -> Self {
        let shares = Shares {
            anon_pages: 0,
            anon_thps: 0,
            ..self.shares
        };
        let mut anew = Self {
            entire: 0,
            double_map: false,
            subpage: [0; N],
            refs: self.pins,
            shares,
            mappings: [Mapping::None; MAX_MAPPERS],
            pins: self.pins,
        };
        for (mm, mapping) in self.mappings.iter().enumerate() {
            match mapping {
                Mapping::None => {}
                Mapping::Pmd => anew.map_pmd(mm),
                Mapping::Ptes(set) => anew.map_ptes(mm, set),
            }
        }
        anew
    }

    /// `mm`'s PMD becomes a table. Nothing if it has none: a second split does nothing.
    pub fn split_pmd(&mut self, mm: usize) {
        if self.mappings[mm] != Mapping::Pmd {
            return;
        }
        self.shares.split_pmd += 1;
        self.refs += ALL_PAGES - 1;
        self.bias(1);
        if self.entire > 1 && !self.double_map {
            self.double_map = true;
            self.bias(1);
        }
        self.entire -= 1;
        if self.entire == 0 {
            self.shares.anon_thps -= 1;
            self.leave_double_map();
        }
        self.mappings[mm] = Mapping::Ptes(Subpages::ALL);
    }

    /// `mm` unmaps its PMD.
    pub fn unmap_pmd(&mut self, mm: usize) {
        if self.mappings[mm] != Mapping::Pmd {
            return;
        }
        self.mappings[mm] = Mapping::None;
        self.entire -= 1;
        self.refs -= 1;
        if self.entire > 0 {
            return;
        }
        self.shares.anon_thps -= 1;
        let gone = if self.double_map {
            self.leave_double_map()
        } else {
            ALL_PAGES
        };
        self.shares.anon_pages -= gone;
        if 0 < gone && gone < ALL_PAGES {
            self.enqueue();
        }
    }

    /// `mm` unmaps `set`, as one operation on PTEs.
    pub fn unmap_ptes(&mut self, mm: usize, set: &Subpages) {
        let Mapping::Ptes(mut mapped) = self.mappings[mm] else {
            return;
        };
        let mut gone = 0;
        for i in set.iter().filter(|&i| mapped.contains(i)) {
            self.subpage[i] -= 1;
            self.refs -= 1;
            gone += u32::from(self.subpage[i] == 0);
        }
        for i in set.iter() {
            mapped.remove(i);
        }
        self.mappings[mm] = if mapped.is_empty() {
            Mapping::None
        } else {
            Mapping::Ptes(mapped)
        };
        self.shares.anon_pages -= gone;
        if gone > 0 && self.total() > 0 {
            self.enqueue();
        }
    }

    /// `mm` unmaps `set` in whatever way it maps the page: a whole PMD at once, part of one after splitting it.
    pub fn zap(&mut self, mm: usize, set: &Subpages) {
        if self.mappings[mm] == Mapping::Pmd {
            if *set == Subpages::ALL {
                return self.unmap_pmd(mm);
            }
            self.split_pmd(mm);
        }
        self.unmap_ptes(mm, set);
    }

    /// Somebody takes `n` references that are not mappings.
    pub fn pin(&mut self, n: u32) {
        self.refs += n;
        self.pins += n;
    }

    /// Gives `n` of them back.
    pub fn unpin(&mut self, n: u32) {
        self.refs -= n;
        self.pins -= n;
    }

    /// References that are not mappings.
    #[must_use]
    pub fn pins(&self) -> u32 {
        self.pins
    }

    /// Whether the last reference is gone.
    #[must_use]
    pub fn is_free(&self) -> bool {
        self.refs == 0
    }

    /// Whether `mm` maps it by a PMD.
    #[must_use]
    pub fn has_pmd(&self, mm: usize) -> bool {
        self.mappings[mm] == Mapping::Pmd
    }

    /// Whether `mm` maps subpage `i` in any way.
    #[must_use]
    pub fn maps(&self, mm: usize, i: usize) -> bool {
        match self.mappings[mm] {
            Mapping::None => false,
            Mapping::Pmd => true,
            Mapping::Ptes(set) => set.contains(i),
        }
    }

    /// `page_mapcount` of subpage `i`, by the rule.
    #[must_use]
    pub fn mapcount(&self, i: usize) -> u32 {
        self.subpage[i] + self.entire - u32::from(self.double_map)
    }

    /// Page-table entries that map any part, by the rule.
    #[must_use]
    pub fn total(&self) -> u32 {
        let bias = if self.double_map { ALL_PAGES } else { 0 };
        self.entire + self.subpage.iter().sum::<u32>() - bias
    }

    /// The compared counters.
    #[must_use]
    pub fn row(&self) -> Row {
        Row {
            entire: self.entire,
            double_map: self.double_map,
            raw0: self.subpage[0].cast_signed() - 1,
            raw7: self.subpage[7].cast_signed() - 1,
            mapcount0: self.mapcount(0),
            mapcount7: self.mapcount(7),
            total: self.total(),
            refs: self.refs,
        }
    }

    /// The page's share of the statistics.
    #[must_use]
    pub fn shares(&self) -> Shares {
        self.shares
    }

    /// Derives everything from the true mappings and compares.
    ///
    /// # Panics
    /// Where a rule disagrees with the truth.
    pub fn verify(&self) {
        let pmds = self.mappings.iter().filter(|m| **m == Mapping::Pmd).count();
        let mut total = pmds;
        let mut distinct = 0;
        for i in 0..N {
            let mappers = (0..MAX_MAPPERS).filter(|&mm| self.maps(mm, i)).count();
            assert_eq!(self.mapcount(i) as usize, mappers, "mapcount of subpage {i}");
            total += mappers - pmds;
            distinct += u32::from(mappers > 0);
        }
        assert_eq!(self.entire as usize, pmds);
        assert_eq!(self.total() as usize, total);
        assert_eq!(self.refs as usize, total + self.pins as usize);
        assert!(!self.double_map || self.entire > 0);
        assert_eq!(self.shares.anon_pages, distinct);
        assert_eq!(self.shares.anon_thps, u32::from(pmds > 0));
    }

    fn bias(&mut self, by: u32) {
        for count in &mut self.subpage {
            *count += by;
        }
    }

    /// Takes the common bias away; returns how many subpages nobody maps then.
    fn leave_double_map(&mut self) -> u32 {
        if !core::mem::take(&mut self.double_map) {
            return 0;
        }
        let mut gone = 0;
        for count in &mut self.subpage {
            *count -= 1;
            gone += u32::from(*count == 0);
        }
        gone
    }

    fn enqueue(&mut self) {
        self.shares.deferred = 1;
    }
}
