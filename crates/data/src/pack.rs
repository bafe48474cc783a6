//! Packing documents into rows of a fixed length.

use std::collections::BTreeSet;

/// Best-fit decreasing: documents in descending length (equal lengths in the order given), each into the row with the
/// least room that still holds it, the oldest among equals; a new row when none does. No document is split; one longer
/// than `capacity` gets a row for itself. O(n log n), no randomness.
///
/// Rows are returned in the order in which they were opened, documents in the order in which they were put in.
///
/// The lengths alone decide the shape of the rows (how many there are, and the lengths in each): the order of the input
/// only decides which of several documents of one length goes where.
pub fn pack(lengths: &[usize], capacity: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(lengths[i]));
    let mut rows: Vec<Vec<usize>> = Vec::new();
    let mut room: BTreeSet<(usize, usize)> = BTreeSet::new();
    for document in order {
        let length = lengths[document];
        let fit = room.range((length, 0)..).next().copied();
        let (left, row) = match fit {
            Some(entry) => {
                room.remove(&entry);
                entry
            }
            None => {
                rows.push(Vec::new());
                (capacity.max(length), rows.len() - 1)
            }
        };
        rows[row].push(document);
        room.insert((left - length, row));
    }
    rows
}
