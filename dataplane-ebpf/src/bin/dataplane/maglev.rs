//! The choice of a backend: a frontend's region of the `maglev` map holds backend ids, a hash points into it.

use weir_dataplane_ebpf::{Backend, DropReason, Frontend};

use crate::maps::{Family, MAGLEV};

/// The backend that a slot names, with its id.
#[inline(always)]
pub fn backend<A: Family>(frontend: &Frontend, slot: u32) -> Result<(u32, &'static Backend<A>), DropReason> {
    if frontend.backends == 0 {
        return Err(if frontend.flags & Frontend::FLAG_SERVED_ELSEWHERE == 0 {
            DropReason::NoBackend
        } else {
            DropReason::NoLocalBackend
        });
    }
    let id = *MAGLEV.get(slot).ok_or(DropReason::StaleBackend)?;
    let backend = A::backends().get(id).ok_or(DropReason::StaleBackend)?;
    if backend.flags & Backend::<A>::FLAG_ACTIVE == 0 {
        Err(DropReason::StaleBackend)
    } else {
        Ok((id, backend))
    }
}
