//! Rows with other columns than the server's.

use crate::bank::random::Random;
use crate::wire::Message;

/// What happens to the columns of all rows of an answer, and to their description.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// There is none any more.
    None,
    /// The last is missing.
    Fewer,
    /// The last is there so often.
    More(u16),
    /// All values are NULL.
    Nulls,
}

impl Shape {
    pub(super) fn draw(random: &mut Random) -> Self {
        random.choose(&[Self::None, Self::Fewer, Self::More(2), Self::More(1500), Self::Nulls])
    }

    /// What it makes of a message, which is another only if it is about columns.
    pub(super) fn apply(self, message: &Message) -> Vec<u8> {
        let tag = message.tag.unwrap_or_default();
        let Some(mut columns) = columns(message) else { return message.bytes.clone() };
        match self {
            Self::None => columns.clear(),
            Self::Fewer => _ = columns.pop(),
            Self::More(count) => {
                if let Some(last) = columns.last().cloned() {
                    columns.extend(std::iter::repeat_n(last, count.into()));
                }
            }
            Self::Nulls if tag == b'D' => columns.iter_mut().for_each(|column| *column = null()),
            Self::Nulls => {}
        }
        row(tag, &columns)
    }
}

/// The columns of a row or of the description of rows, as they are encoded.
fn columns(message: &Message) -> Option<Vec<Vec<u8>>> {
    let body = message.body();
    let count = u16::from_be_bytes(body.get(..2)?.try_into().ok()?);
    let mut rest = &body[2..];
    let mut columns = Vec::new();
    for _ in 0..count {
        let length = match message.tag? {
            b'D' => 4 + i32::from_be_bytes(rest.get(..4)?.try_into().ok()?).max(0) as usize,
            b'T' => rest.iter().position(|byte| *byte == 0)? + 19,
            _ => return None,
        };
        columns.push(rest.get(..length)?.to_vec());
        rest = &rest[length..];
    }
    matches!(message.tag, Some(b'D' | b'T')).then_some(columns)
}

/// A row, or a description of rows, of these columns.
fn row(tag: u8, columns: &[Vec<u8>]) -> Vec<u8> {
    let mut body = u16::try_from(columns.len()).unwrap_or(u16::MAX).to_be_bytes().to_vec();
    columns.iter().for_each(|column| body.extend(column));
    Message::new(tag, &body).bytes
}

fn null() -> Vec<u8> {
    (-1_i32).to_be_bytes().to_vec()
}

/// A value of a row.
pub(super) fn value(text: &[u8]) -> Vec<u8> {
    [&(text.len() as u32).to_be_bytes()[..], text].concat()
}

/// A row of so many equal columns.
pub(super) fn row_of(count: usize, text: &[u8]) -> Vec<u8> {
    row(b'D', &vec![value(text); count])
}

/// The description of so many columns of a type.
pub(super) fn description_of(count: usize, name: &[u8], oid: u32, format: u16) -> Vec<u8> {
    let column = [
        name,
        &[0; 7],
        &oid.to_be_bytes(),
        &(-1_i16).to_be_bytes(),
        &(-1_i32).to_be_bytes(),
        &format.to_be_bytes(),
    ]
    .concat();
    row(b'T', &vec![column; count])
}

/// The row with one of its values replaced by what `replace` makes of it; the row itself if it has
/// none.
pub(super) fn with_value(
    message: &Message,
    random: &mut Random,
    replace: impl FnOnce(&mut Random, &[u8]) -> Vec<u8>,
) -> Vec<u8> {
    match columns(message) {
        Some(mut columns) if message.tag == Some(b'D') && !columns.is_empty() => {
            let at = random.below(columns.len() as u64) as usize;
            let was = columns[at][4..].to_vec();
            columns[at] = value(&replace(random, &was));
            row(b'D', &columns)
        }
        _ => message.bytes.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::{Shape, columns, description_of, row_of};
    use crate::wire::Message;

    fn message(bytes: Vec<u8>) -> Message {
        Message { tag: Some(bytes[0]), bytes }
    }

    #[test]
    fn a_shape_fits_both_rows_and_their_description() {
        for (shape, count) in
            [(Shape::None, 0), (Shape::Fewer, 2), (Shape::More(1500), 1503), (Shape::Nulls, 3)]
        {
            for original in [row_of(3, b"x"), description_of(3, b"name", 23, 0)] {
                let spoiled = message(shape.apply(&message(original)));
                assert_eq!(columns(&spoiled).unwrap().len(), count, "{shape:?}");
            }
        }
    }
}
