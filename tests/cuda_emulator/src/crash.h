// Tells what was going on when a kernel, or the host in device memory, ends the process.
#pragma once

namespace lamina_emulator {

void watch_for_crashes();  // installs the handlers; once
void give_signal_stack();  // to the thread that calls: a kernel may have used up its own

}  // namespace lamina_emulator
