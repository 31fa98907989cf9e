//! The sequences, row by row.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use Command::{SplitPmd, Unmap, Write as WritePage};
use Show::{All, Pages};
use Who::{A, B, C};
use user::{HUGE, PAGE, mapping::Mapping};

use crate::{
    observe::PAGES,
    scene::{Scene, Show, Who, pid},
    twin::Command,
};

/// Moves pages that others map too.
const MPOL_MF_MOVE_ALL: i32 = 4;
const SPLIT: &str = "/sys/kernel/debug/split_huge_pages";

/// T1: fork, split, unmap in three processes.
pub(crate) fn share() -> io::Result<()> {
    {
        let mut scene = Scene::new("T1.1")?;
        scene.fork()?;
        scene.fork()?;
        scene.look("T1.2", All)?;
        scene.step("T1.3", A, &SplitPmd, All)?;
        scene.step("T1.4", A, &Unmap(7..8), All)?;
        scene.step("T1.5", B, &SplitPmd, All)?;
        scene.step("T1.6", C, &Unmap(0..PAGES), All)?;
        scene.step("T1.7", B, &Unmap(7..8), All)?;
    }
    {
        let mut scene = Scene::new("T1.8")?;
        scene.fork()?;
        scene.step("T1.8a", A, &SplitPmd, All)?;
        scene.step("T1.8b", B, &SplitPmd, All)?;
    }
    {
        let mut scene = Scene::new("T1.9")?;
        scene.fork()?;
        scene.step("T1.9a", A, &SplitPmd, Pages)?;
        scene.step("T1.9b", A, &Unmap(0..PAGES), All)?;
        scene.step("T1.9c", B, &Unmap(0..PAGES), Pages)?;
    }
    {
        let mut scene = Scene::new("T1.10")?;
        scene.fork()?;
        scene.step("T1.10a", A, &SplitPmd, Pages)?;
        scene.step("T1.10b", A, &Unmap(0..256), All)?;
        scene.step("T1.10c", B, &Unmap(0..PAGES), All)?;
    }
    // One writes to what both share.
    let mut scene = Scene::new("COW")?;
    scene.fork()?;
    scene.step("COW.b", B, &WritePage(7), All)?;
    scene.step("COW.a", A, &WritePage(7), All)
}

/// Something to be written into a file of the kernel, ready: opened, and with its text, so that nothing else happens in
/// the step that writes it.
#[derive(Debug)]
pub(crate) struct Order {
    file: File,
    text: String,
}

impl Order {
    fn new(path: &str, text: String) -> io::Result<Self> {
        let file = OpenOptions::new().write(true).open(path)?;
        Ok(Self { file, text })
    }

    /// Splits what waits to be split.
    fn shrink() -> io::Result<Self> {
        Self::new("/proc/sys/vm/drop_caches", "2\n".to_owned())
    }

    /// Splits the huge pages that this process maps where the scene's is.
    fn split(scene: &Scene) -> io::Result<Self> {
        let text = format!("{},{:#x},{:#x}", pid(), scene.addr(), scene.addr() + HUGE);
        Self::new(SPLIT, text)
    }

    /// Splits every huge page.
    fn split_all() -> io::Result<Self> {
        Self::new(SPLIT, "1".to_owned())
    }

    /// Writes it.
    pub(crate) fn give(&mut self) -> io::Result<()> {
        match self.file.write(self.text.as_bytes())? {
            taken if taken == self.text.len() => Ok(()),
            _ => Err(io::ErrorKind::WriteZero.into()),
        }
    }
}

/// Has an order carried out, as a step.
fn order(scene: &mut Scene, row: &str, show: Show, mut order: Order) -> io::Result<()> {
    scene.act(row, show, |_| order.give())
}

/// T3: the deferred split queue.
pub(crate) fn queue() -> io::Result<()> {
    {
        let mut scene = Scene::new("T3")?;
        scene.step("T3.1", A, &Unmap(7..8), All)?;
        order(&mut scene, "T3.2", All, Order::shrink()?)?;
        println!("T3.2 damaged={:?}", scene.damage(0..7).or(scene.damage(8..PAGES)));
    }
    {
        let mut scene = Scene::new("T3.3")?;
        scene.act("T3.3a", Pages, |scene| {
            (0..PAGES / 2).try_for_each(|pair| Unmap(2 * pair + 1..2 * pair + 2).apply(scene.block()))
        })?;
        order(&mut scene, "T3.3b", Pages, Order::shrink()?)?;
        let damaged = (0..PAGES / 2).find_map(|pair| scene.damage(2 * pair..2 * pair + 1));
        println!("T3.3 damaged={damaged:?}");
    }
    {
        let mut scene = Scene::new("T3.4")?;
        scene.step("T3.4a", A, &SplitPmd, Pages)?;
        scene.step("T3.4b", A, &Unmap(0..PAGES), All)?;
        order(&mut scene, "T3.4c", Pages, Order::shrink()?)?;
    }
    let mut scene = Scene::new("T3.5")?;
    scene.step("T3.5a", A, &Unmap(0..PAGES), All)
}

/// A reference to one subpage that a pipe holds.
#[derive(Debug)]
struct Pin {
    read: File,
    byte: u8,
}

impl Pin {
    /// Puts subpage `page` into a pipe without copying it.
    fn take(block: &Mapping, page: usize) -> io::Result<Self> {
        let mut ends = [-1; 2];
        // SAFETY: the call writes two numbers.
        if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call made them, and nobody else has them.
        let [read, write] = ends.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
        let whole = libc::iovec {
            iov_base: std::ptr::with_exposed_provenance_mut(block.addr() + page * PAGE),
            iov_len: PAGE,
        };
        // SAFETY: the page is mapped, and only read.
        let moved = unsafe { libc::vmsplice(write.as_raw_fd(), &raw const whole, 1, 0) };
        match moved {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(Self {
                read: read.into(),
                byte: block.read(page * PAGE),
            }),
        }
    }

    /// Gives it back; returns whether the pipe still had the page's byte.
    fn release(&mut self) -> io::Result<bool> {
        let mut bytes = vec![0; PAGE];
        self.read.read_exact(&mut bytes)?;
        Ok(bytes[0] == self.byte)
    }
}

/// T4: a PMD can always be split.
pub(crate) fn pmd() -> io::Result<()> {
    {
        let mut scene = Scene::new("T4.3")?;
        scene.step("T4.3a", A, &SplitPmd, Pages)?;
        scene.step("T4.3b", A, &SplitPmd, Pages)?;
    }
    {
        let mut scene = Scene::new("T4.4")?;
        scene.fork()?;
        scene.step("T4.4a", A, &SplitPmd, All)?;
    }
    let mut scene = Scene::new("T4.5")?;
    scene.act("T4.5a", All, |scene| {
        scene.block().protect(0..HUGE, libc::PROT_READ)
    })?;
    scene.act("T4.5b", All, |scene| {
        scene.block().protect(0..PAGE, libc::PROT_NONE)?;
        scene.block().protect(0..PAGE, libc::PROT_READ)
    })
}

/// Tells debugfs something; returns how many bytes it took, or the errno.
pub(crate) fn tell(path: &str, text: &str) -> Result<usize, i32> {
    let write = || OpenOptions::new().write(true).open(path)?.write(text.as_bytes());
    write().map_err(|error| error.raw_os_error().unwrap_or(0))
}

/// T5: the page itself, split by debugfs.
pub(crate) fn page() -> io::Result<()> {
    {
        let mut scene = Scene::new("T5.1")?;
        let split = Order::split(&scene)?;
        order(&mut scene, "T5.1a", All, split)?;
        println!("T5.1 damaged={:?}", scene.damage(0..PAGES));
    }
    {
        let mut scene = Scene::new("T5.5")?;
        scene.fork()?;
        scene.fork()?;
        let split = Order::split(&scene)?;
        order(&mut scene, "T5.5a", All, split)?;
    }
    {
        let mut scene = Scene::new("T5.6")?;
        scene.step("T5.6a", A, &Unmap(7..8), Pages)?;
        // The range ends where the first address without an area is.
        let split = Order::split(&scene)?;
        order(&mut scene, "T5.6b", Pages, split)?;
    }
    let mut scene = Scene::new("T5.7")?;
    scene.fork()?;
    scene.step("T5.7a", B, &SplitPmd, Pages)?;
    scene.step("T5.7b", B, &Unmap(0..1), Pages)?;
    let split = Order::split(&scene)?;
    order(&mut scene, "T5.7c", All, split)?;
    println!("T5.7 damaged={:?}", scene.damage(0..PAGES));
    scene.step("T5.7d", B, &WritePage(9), Pages)?;
    println!("T5.7 damaged={:?}", scene.damage(0..PAGES));
    Ok(())
}

/// A page that a pipe holds: its PMD can be split, the page cannot.
pub(crate) fn pins() -> io::Result<()> {
    {
        let mut scene = Scene::new("T3.6")?;
        let mut pin = Pin::take(scene.block(), 100)?;
        scene.step("T3.6a", A, &Unmap(7..8), Pages)?;
        scene.pass("T3.6b", Order::shrink()?)?;
        println!("T3.6 pinned bytes kept={}", pin.release()?);
        order(&mut scene, "T3.6c", Pages, Order::shrink()?)?;
    }
    {
        let mut scene = Scene::new("T4.2")?;
        let mut pin = Pin::take(scene.block(), 7)?;
        scene.step("T4.2a", A, &SplitPmd, All)?;
        println!("T4.2 pinned bytes kept={}", pin.release()?);
    }
    let mut scene = Scene::new("T5.2")?;
    let mut pin = Pin::take(scene.block(), 7)?;
    let split = Order::split(&scene)?;
    order(&mut scene, "T5.2a", All, split)?;
    order(&mut scene, "T5.2b", All, Order::split_all()?)?;
    println!("T5.2 pinned bytes kept={}", pin.release()?);
    let split = Order::split(&scene)?;
    order(&mut scene, "T5.2c", Pages, split)
}

/// C19: a page that one process maps by PTEs and another by a PMD moves to another node.
pub(crate) fn nodes() -> io::Result<()> {
    let mut scene = Scene::new("C19")?;
    scene.fork()?;
    scene.step("C19.a", A, &SplitPmd, All)?;
    let other = 1 - node(&scene)?;
    scene.act("C19.b", All, |scene| move_to(scene, other))?;
    println!("C19.b moved={}", node(&scene)? == other);
    scene.step("C19.c", A, &Unmap(0..PAGES), All)?;
    scene.step("C19.d", B, &Unmap(0..PAGES), All)
}

/// One page, by `move_pages`: to `node`, or only asks where it is. Returns its status.
fn move_pages(scene: &Scene, node: Option<i32>) -> io::Result<i32> {
    let page = std::ptr::with_exposed_provenance_mut::<libc::c_void>(scene.addr());
    let mut status = -1_i32;
    let nodes = node.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: one page, one node or none, one status; pages keep their contents wherever they are.
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_pages,
            0,
            1,
            &raw const page,
            nodes,
            &raw mut status,
            if node.is_some() { MPOL_MF_MOVE_ALL } else { 0 },
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: written by the call above.
    Ok(unsafe { (&raw const status).read_volatile() })
}

/// The node that the page is on.
fn node(scene: &Scene) -> io::Result<i32> {
    move_pages(scene, None)
}

/// Moves the whole page, with all that map it, and follows it to its new frames.
fn move_to(scene: &mut Scene, node: i32) -> io::Result<()> {
    move_pages(scene, Some(node))?;
    scene.follow()
}
