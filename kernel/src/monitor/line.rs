//! Reads lines: edited and with history on a terminal, as they come from a pipe.
//!
//! | key | does |
//! |---|---|
//! | left, right, home, end, ctrl-A, ctrl-E | move |
//! | up, down | earlier and later lines |
//! | backspace, delete, ctrl-U, ctrl-K, ctrl-W | erase a character, to the beginning, to the end, a word |
//! | ctrl-C | forgets the line |
//! | ctrl-D on an empty line | ends the input |

use alloc::{string::String, vec::Vec};

use crate::{
    drivers::uart::{self, Read},
    vfs::tty::{self, Stream},
};

/// Lines that are remembered.
const HISTORY: usize = 100;
/// Longest line; more of a piped line is an error of whoever wrote it, more of a typed one is not taken.
const LONGEST: usize = 4096;

const CTRL_A: u8 = 1;
const CTRL_C: u8 = 3;
const CTRL_D: u8 = 4;
const CTRL_E: u8 = 5;
const CTRL_K: u8 = 11;
const CTRL_U: u8 = 21;
const CTRL_W: u8 = 23;
const BACKSPACE: u8 = 8;
const ESCAPE: u8 = 27;
const DELETE: u8 = 127;

/// What came.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Input {
    /// A line, without its end.
    Line(String),
    /// Nothing will come any more.
    End,
}

/// Reads lines and remembers them.
#[derive(Debug, Default)]
pub struct LineReader {
    history: Vec<String>,
}

/// What a key means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Key {
    Character(char),
    Enter,
    Left,
    Right,
    Home,
    End,
    Up,
    Down,
    EraseBefore,
    EraseAt,
    EraseToStart,
    EraseToEnd,
    EraseWord,
    Forget,
    EndOfInput,
    Unknown,
}

impl LineReader {
    /// Starts without history.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads one line; `prompt` is shown on a terminal only.
    ///
    /// # Context
    /// May wait.
    pub fn read(&mut self, prompt: &str) -> Input {
        if !Stream::Stdin.is_terminal() {
            return read_plain();
        }
        let input = Editor::new(prompt, &self.history).run();
        if let Input::Line(line) = &input {
            self.remember(line);
        }
        input
    }

    fn remember(&mut self, line: &str) {
        if line.trim().is_empty() || self.history.last().is_some_and(|last| last == line) {
            return;
        }
        if self.history.len() == HISTORY {
            self.history.remove(0);
        }
        self.history.push(line.into());
    }
}

/// Waits for the next byte; `None` at the end of input.
fn next_byte() -> Option<u8> {
    if let Some(byte) = tty::take_left() {
        return Some(byte);
    }
    let mut byte = [0];
    loop {
        match uart::com1_read(&mut byte) {
            Read::Bytes(_) => return Some(byte[0]),
            Read::Eof => return None,
            Read::WouldBlock => uart::com1_wait(None),
        }
    }
}

fn read_plain() -> Input {
    let mut line = Vec::new();
    loop {
        match next_byte() {
            Some(b'\n') => break,
            Some(byte) if line.len() < LONGEST => line.push(byte),
            // The rest of an endless line is read, so that it is not taken for the next.
            Some(_) => {}
            None if line.is_empty() => return Input::End,
            None => break,
        }
    }
    if line.last() == Some(&b'\r') {
        line.pop();
    }
    Input::Line(String::from_utf8_lossy(&line).into_owned())
}

/// One line being edited.
struct Editor<'a> {
    prompt: &'a str,
    history: &'a [String],
    /// Which line of the history is shown; its length: the new one.
    shown: usize,
    line: Vec<char>,
    cursor: usize,
}

impl<'a> Editor<'a> {
    fn new(prompt: &'a str, history: &'a [String]) -> Self {
        Self {
            prompt,
            history,
            shown: history.len(),
            line: Vec::new(),
            cursor: 0,
        }
    }

    fn run(mut self) -> Input {
        self.redraw();
        loop {
            let Some(key) = next_key() else {
                put("\n");
                return Input::End;
            };
            match key {
                Key::Enter => {
                    put("\n");
                    return Input::Line(self.line.into_iter().collect());
                }
                Key::EndOfInput if self.line.is_empty() => {
                    put("\n");
                    return Input::End;
                }
                Key::Forget => {
                    put("^C\n");
                    self.show(self.history.len());
                }
                Key::Character(character) if self.cursor == self.line.len() => {
                    // The common case needs no drawing.
                    self.insert(character);
                    put(character.encode_utf8(&mut [0; 4]));
                    continue;
                }
                key => self.apply(key),
            }
            self.redraw();
        }
    }

    fn apply(&mut self, key: Key) {
        match key {
            Key::Character(character) => self.insert(character),
            Key::Left => self.cursor = self.cursor.saturating_sub(1),
            Key::Right => self.cursor = (self.cursor + 1).min(self.line.len()),
            Key::Home => self.cursor = 0,
            Key::End => self.cursor = self.line.len(),
            Key::Up => self.show(self.shown.saturating_sub(1)),
            Key::Down => self.show((self.shown + 1).min(self.history.len())),
            Key::EraseBefore => self.erase(self.cursor.saturating_sub(1)),
            Key::EraseWord => self.erase(self.word_start()),
            Key::EraseToStart => self.erase(0),
            Key::EraseToEnd => self.line.truncate(self.cursor),
            Key::EraseAt | Key::EndOfInput if self.cursor < self.line.len() => {
                self.line.remove(self.cursor);
            }
            Key::EraseAt | Key::EndOfInput | Key::Enter | Key::Forget | Key::Unknown => {}
        }
    }

    fn insert(&mut self, character: char) {
        if self.line.len() < LONGEST {
            self.line.insert(self.cursor, character);
            self.cursor += 1;
        }
    }

    /// Erases from `start` to the cursor.
    fn erase(&mut self, start: usize) {
        self.line.drain(start..self.cursor);
        self.cursor = start;
    }

    fn word_start(&self) -> usize {
        let before = &self.line[..self.cursor];
        let end = before
            .iter()
            .rposition(|character| *character != ' ')
            .map_or(0, |last| last + 1);
        before[..end]
            .iter()
            .rposition(|character| *character == ' ')
            .map_or(0, |space| space + 1)
    }

    fn show(&mut self, which: usize) {
        self.shown = which;
        self.line = self
            .history
            .get(which)
            .map_or_else(Vec::new, |line| line.chars().collect());
        self.cursor = self.line.len();
    }

    fn redraw(&self) {
        let text: String = self.line.iter().collect();
        let back = self.line.len() - self.cursor;
        let mut out = alloc::format!("\r{}{text}\x1b[K", self.prompt);
        if back > 0 {
            out.push_str(&alloc::format!("\x1b[{back}D"));
        }
        put(&out);
    }
}

fn put(text: &str) {
    uart::com1_write(text.as_bytes());
}

/// Waits for the next key; `None` at the end of input.
fn next_key() -> Option<Key> {
    Some(match next_byte()? {
        b'\r' | b'\n' => Key::Enter,
        BACKSPACE | DELETE => Key::EraseBefore,
        CTRL_A => Key::Home,
        CTRL_C => Key::Forget,
        CTRL_D => Key::EndOfInput,
        CTRL_E => Key::End,
        CTRL_K => Key::EraseToEnd,
        CTRL_U => Key::EraseToStart,
        CTRL_W => Key::EraseWord,
        ESCAPE => return escape_sequence(),
        byte if byte < b' ' => Key::Unknown,
        byte => return character(byte),
    })
}

/// The keys that terminals send as `ESC [ ... letter` or `ESC O letter`.
fn escape_sequence() -> Option<Key> {
    if !matches!(next_byte()?, b'[' | b'O') {
        return Some(Key::Unknown);
    }
    let mut number = 0_u8;
    loop {
        let byte = next_byte()?;
        return Some(match byte {
            b'0'..=b'9' => {
                number = byte - b'0';
                continue;
            }
            b';' => continue,
            b'A' => Key::Up,
            b'B' => Key::Down,
            b'C' => Key::Right,
            b'D' => Key::Left,
            b'H' => Key::Home,
            b'F' => Key::End,
            b'~' => match number {
                1 | 7 => Key::Home,
                4 | 8 => Key::End,
                3 => Key::EraseAt,
                _ => Key::Unknown,
            },
            _ => Key::Unknown,
        });
    }
}

/// A character of one to four bytes of UTF-8, the first of which is `first`.
fn character(first: u8) -> Option<Key> {
    let length = match first {
        0..0x80 => 1,
        0xc0..0xe0 => 2,
        0xe0..0xf0 => 3,
        0xf0..0xf8 => 4,
        _ => return Some(Key::Unknown),
    };
    let mut bytes = [first, 0, 0, 0];
    for slot in &mut bytes[1..length] {
        *slot = next_byte()?;
    }
    let character = core::str::from_utf8(&bytes[..length])
        .ok()
        .and_then(|text| text.chars().next());
    Some(character.map_or(Key::Unknown, Key::Character))
}
