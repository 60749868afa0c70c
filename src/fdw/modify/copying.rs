//! The COPY commands that take the rows of one INSERT to the server. Rows are collected as text,
//! and handed over to a COPY that stays open as long as they come fast, so that the server is at
//! work while the next ones are made.
//!
//! Each COPY costs the server what a few thousand rows do. But an error is heard of at the end of
//! one, and while one is open the server's `statement_timeout` runs: so none is endless, and when
//! rows come slowly each has only what was collected before it began.

use std::cell::Cell;
use std::ffi::{CStr, CString};
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::libpq::PgResult;
use crate::pg::backend_local::BackendLocal;
use crate::pg::error::{Error, Result, SqlState};
use crate::protocol::copy_text::push_row;
use crate::remote::connection::Asked;
use crate::remote::report;
use crate::xact::Attachment;

/// So many bytes are handed over at a time.
const ENOUGH: usize = 1 << 16;

/// While the connection does not take them, so many are collected before it is waited for.
const MOST_BYTES: usize = 1 << 20;

/// What all targets of this session collect together. Beyond this each sends what it has.
const MOST_BYTES_OF_ALL: usize = 16 << 20;

/// When a COPY has so many bytes, it ends.
const BYTES_OF_COPY: usize = 8 << 20;

/// Rows come fast as long as [`ENOUGH`] bytes of them come within this time.
const FAST: Duration = Duration::from_millis(100);

static COLLECTED: BackendLocal<Cell<usize>> = BackendLocal::new(Cell::new(0));

/// Rows on their way by COPY.
pub struct Copying {
    command: Rc<CStr>,
    collected: Vec<u8>,
    rows: usize,
    /// The connection was busy: when so many bytes are collected, it is looked after again.
    next_look: usize,
    /// How many bytes were handed over.
    sent: usize,
    /// Whether others use the connection in between. Then no COPY is left open: the server is to
    /// work on what it has.
    shares: Rc<Cell<bool>>,
    /// When rows were last handed over, or the first was collected.
    since: Option<Instant>,
    /// The last COPY, until its answer is taken.
    last: Option<Sent>,
}

struct Sent {
    asked: Asked,
    rows: usize,
    bytes: usize,
    /// It was ended, or sent with its end.
    ends: bool,
}

impl Copying {
    pub fn new(command: CString) -> Self {
        Self {
            command: command.into(),
            collected: Vec::new(),
            rows: 0,
            next_look: 0,
            sent: 0,
            shares: Rc::default(),
            since: None,
            last: None,
        }
    }

    /// Where it is noted that others use the connection in between.
    pub fn shares(&self) -> &Rc<Cell<bool>> {
        &self.shares
    }

    /// Whether there are rows that will go by COPY, or a COPY is under way.
    pub fn is_under_way(&self) -> bool {
        self.rows > 0 || self.last.is_some()
    }

    /// Collects rows of so many columns.
    pub fn collect(&mut self, values: &[Option<&CStr>], columns: usize) {
        self.since.get_or_insert_with(Instant::now);
        let before = self.collected.len();
        if self.collected.capacity() == 0 {
            self.collected.reserve(self.enough() + ENOUGH / 4);
        }
        for row in values.chunks(columns) {
            push_row(&mut self.collected, row.iter().map(|value| value.map(CStr::to_bytes)));
            self.rows += 1;
        }
        let of_all = COLLECTED.get();
        of_all.set(of_all.get() + self.collected.len() - before);
    }

    /// Hands over what is collected, if that is enough.
    ///
    /// # Errors
    /// The server's about the rows before, the lost connection, a cancel.
    pub fn go_on(&mut self, session: &Attachment) -> Result<()> {
        let is_too_much = COLLECTED.get().get() >= MOST_BYTES_OF_ALL;
        let length = self.collected.len();
        if length < self.enough().max(self.next_look) && !is_too_much {
            return Ok(());
        }
        if let Some(last) = &self.last
            && length < MOST_BYTES
            && !is_too_much
            && session.connection().is_busy_copying(last.asked.ticket())
        {
            self.next_look = length + ENOUGH;
            return Ok(());
        }
        let time = FAST * (length / ENOUGH) as u32;
        let is_slow = self.since.is_none_or(|since| since.elapsed() > time);
        self.hand_over(session, is_slow || self.shares.get())
    }

    /// How many bytes are enough. If each COPY has a quarter of what was sent before, the server
    /// has something to do soon, and what it has still to do at the end takes a fraction of the
    /// time.
    fn enough(&self) -> usize {
        match self.shares.get() {
            true => (self.sent / 4).clamp(2 * ENOUGH, MOST_BYTES),
            false => ENOUGH,
        }
    }

    /// Hands over what is collected, and waits for all answers.
    ///
    /// # Errors
    /// As for [`Self::go_on`].
    pub fn finish(&mut self, session: &Attachment) -> Result<()> {
        if self.rows > 0 {
            self.hand_over(session, true)?;
        }
        self.take_answer(session)
    }

    /// Hands over what is collected, to the COPY that is open or to the next one, which `ends` with
    /// it or not.
    fn hand_over(&mut self, session: &Attachment, ends: bool) -> Result<()> {
        let connection = session.connection();
        if let Some(last) = &mut self.last
            && connection.feed_copy(last.asked.ticket(), &self.collected)?
        {
            last.rows += self.rows;
            last.bytes += self.collected.len();
            if ends || last.bytes >= BYTES_OF_COPY {
                connection.end_copy(last.asked.ticket());
                last.ends = true;
            }
            self.note_handed_over();
            self.collected.clear();
            return Ok(());
        }
        if self.last.as_ref().is_some_and(|last| !last.ends) {
            self.shares.set(true);
        }
        self.take_answer(session)?;
        let (rows, bytes) = (self.rows, self.collected.len());
        self.note_handed_over();
        let data = std::mem::take(&mut self.collected);
        let asked = session.copy(&self.command, data, ends)?;
        self.last = Some(Sent { asked, rows, bytes, ends });
        Ok(())
    }

    fn note_handed_over(&mut self) {
        let of_all = COLLECTED.get();
        of_all.set(of_all.get() - self.collected.len());
        self.rows = 0;
        self.sent += self.collected.len();
        self.next_look = 0;
        self.since = Some(Instant::now());
    }

    /// Ends the last COPY and waits for its answer.
    fn take_answer(&mut self, session: &Attachment) -> Result<()> {
        let Some(Sent { asked, rows, .. }) = self.last.take() else { return Ok(()) };
        let connection = session.connection();
        connection.end_copy(asked.ticket());
        let result = session.wait(&asked)?;
        if !result.command_tag().to_bytes().starts_with(b"COPY ") {
            return Err(report::unexpected_answer(&connection.server_name));
        }
        check(session, rows, &result)
    }
}

impl Drop for Copying {
    fn drop(&mut self) {
        self.note_handed_over();
    }
}

/// The executor has been told that all rows of a command were inserted.
pub fn check(session: &Attachment, rows: usize, result: &PgResult) -> Result<()> {
    let inserted = result.rows_affected();
    if inserted == rows as u64 {
        return Ok(());
    }
    let server = session.connection().server_name.to_bytes();
    Err(Error::new(
        SqlState::FDW_ERROR,
        [b"server \"", server, format!("\" has inserted {inserted} rows of {rows}").as_bytes()]
            .concat(),
    )
    .detail("When the statement began, nothing there could drop rows.")
    .hint("Try again, or set batch_size for the foreign table."))
}
