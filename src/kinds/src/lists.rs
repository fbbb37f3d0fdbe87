//! Lists of fields in parts, so that what several kinds share stands once.

use engine::contract::Field;

/// The fields of several lists as one, in order: `fields![&SHARED, &[OWN]]`.
macro_rules! fields {
    ($($list:expr),+ $(,)?) => {{
        const LISTS: &[&[::engine::contract::Field]] = &[$($list),+];
        const JOINED: [::engine::contract::Field; $crate::lists::count(LISTS)] =
            $crate::lists::joined(LISTS);
        &JOINED
    }};
}

pub(crate) use fields;

/// How many fields there are in all.
pub(crate) const fn count(lists: &[&[Field]]) -> usize {
    let mut count = 0;
    let mut list = 0;
    while list < lists.len() {
        count += lists[list].len();
        list += 1;
    }
    count
}

/// All of them; N is their [`count`].
pub(crate) const fn joined<const N: usize>(lists: &[&[Field]]) -> [Field; N] {
    let mut all = [lists[0][0]; N];
    let (mut list, mut next) = (0, 0);
    while list < lists.len() {
        let mut index = 0;
        while index < lists[list].len() {
            all[next] = lists[list][index];
            next += 1;
            index += 1;
        }
        list += 1;
    }
    all
}
