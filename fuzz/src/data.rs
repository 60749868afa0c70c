//! Numbers, texts and choices out of bytes. When these have come to their end, all are zero: a
//! shorter input is a simpler one.

/// What is left of an input.
#[derive(Debug)]
pub struct Data<'a>(pub &'a [u8]);

impl<'a> Data<'a> {
    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        let (first, rest) =
            self.0.split_first().map_or((0, self.0), |(first, rest)| (*first, rest));
        self.0 = rest;
        first
    }

    /// A number below `limit`, of one byte.
    pub fn below(&mut self, limit: u8) -> u8 {
        self.byte() % limit.max(1)
    }

    /// A truth value.
    pub fn flag(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    /// A number of eight bytes, small ones and the ends of the range among them.
    pub fn number(&mut self) -> u64 {
        match self.below(4) {
            0 => self.below(8).into(),
            1 => u64::MAX - u64::from(self.below(8)),
            2 => i64::MAX as u64 - 3 + u64::from(self.below(8)),
            _ => (0..8).fold(0, |number, _| number << 8 | u64::from(self.byte())),
        }
    }

    /// So many bytes as the next one says, and are left.
    pub fn bytes(&mut self) -> &'a [u8] {
        let length = usize::from(self.byte()).min(self.0.len());
        let (bytes, rest) = self.0.split_at(length);
        self.0 = rest;
        bytes
    }

    /// One of these.
    pub fn choose<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[usize::from(self.byte()) % choices.len()]
    }
}
