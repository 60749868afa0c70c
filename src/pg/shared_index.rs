//! An index in shared memory, from a key to a place in an array, kept in PostgreSQL's own hash
//! table (`dynahash.c`). Its size is fixed at the start of the server.

use std::cell::Cell;
use std::ffi::{CStr, c_long};
use std::marker::PhantomData;
use std::ptr::null_mut;

use pgrx::pg_sys::{self, HASHACTION};

use crate::pg::{raw, versions};

/// An element of the hash table, which begins with the key.
#[repr(C)]
struct Element<K> {
    key: K,
    place: u32,
}

/// A type whose values are equal exactly if their bytes are.
///
/// # Safety
/// It has no padding and no pointers.
pub unsafe trait Key: Copy {}

/// The index, as this process is attached to it.
pub struct SharedIndex<K> {
    table: Cell<*mut pg_sys::HTAB>,
    key: PhantomData<K>,
}

impl<K: Key> SharedIndex<K> {
    /// Not attached yet.
    pub const fn new() -> Self {
        Self { table: Cell::new(null_mut()), key: PhantomData }
    }

    /// The memory that this many keys take.
    pub fn size(keys: usize) -> usize {
        // SAFETY: only computes.
        unsafe { pg_sys::hash_estimate_size(keys as c_long, size_of::<Element<K>>()) }
    }

    /// Makes the index for this many keys, or attaches to it; under `AddinShmemInitLock`.
    pub fn attach(&self, name: &CStr, keys: usize) {
        let mut control = pg_sys::HASHCTL {
            keysize: size_of::<K>(),
            entrysize: size_of::<Element<K>>(),
            ..Default::default()
        };
        let flags = pg_sys::HASH_ELEM | pg_sys::HASH_BLOBS | pg_sys::HASH_FIXED_SIZE;
        // SAFETY: called in the start-up hook. All memory is taken now, so that inserting never
        // needs more.
        self.table.set(unsafe { versions::ShmemInitHash(name, keys as i64, &mut control, flags) });
    }

    fn search(&self, key: &K, action: HASHACTION::Type) -> *mut Element<K> {
        let key = std::ptr::from_ref(key).cast();
        // SAFETY: attached at start-up; the caller holds the lock under which all processes use it.
        unsafe { raw::hash_search(self.table.get(), key, action, null_mut()).cast() }
    }

    /// The place of a key. The caller holds the lock over the index.
    pub fn find(&self, key: &K) -> Option<u32> {
        // SAFETY: an element that is there stays valid while the lock is held.
        unsafe { self.search(key, HASHACTION::HASH_FIND).as_ref() }.map(|element| element.place)
    }

    /// Sets the place of a key, and returns whether there was room. The caller holds the lock
    /// exclusively.
    pub fn set(&self, key: &K, place: u32) -> bool {
        // SAFETY: as above; a new element's place is written before anybody else can look.
        match unsafe { self.search(key, HASHACTION::HASH_ENTER_NULL).as_mut() } {
            Some(element) => {
                element.place = place;
                true
            }
            None => false,
        }
    }

    /// Removes a key. The caller holds the lock exclusively.
    pub fn remove(&self, key: &K) {
        self.search(key, HASHACTION::HASH_REMOVE);
    }
}
