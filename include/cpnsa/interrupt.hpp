#pragma once

#include "cpnsa/require_cxx20.hpp"

namespace cpnsa {

/// Ends this process's waits for other ranks with an InterruptedError, present and later ones, until
/// clear_interrupt(). A rank whose wait ends so aborts its communicator, which releases the other ranks. May be called
/// from a signal handler; the library installs none. Not ended: waits in a callback of callbacks::Callbacks, which may
/// look at interrupted() itself, and waits for the device alone.
void interrupt() noexcept;
bool interrupted() noexcept;
void clear_interrupt() noexcept;

/// A host that handles signals itself, as Python does: `poll` is asked some 20 times per second on a thread that waits
/// for other ranks, with no lock of the library held. If it returns true, that thread's wait ends with an
/// InterruptedError. nullptr, the default: nobody is asked. `poll` must not throw.
void set_interrupt_poll(bool (*poll)()) noexcept;

}  // namespace cpnsa
