// Requests whose time in flight is a span of a trace.
#pragma once

#include "core/base/trace.h"
#include "parallel/comm/communicator.h"

namespace lamina::comm {

// `span` begins when the operation is issued and ends when test() or wait() first finds it done, or when it is given up:
//   const int64_t id = recorder->open(span);
//   request = traced(comm.all_gather(..), *recorder, id);
// The recorder must outlive the request.
Request traced(Request request, trace::Recorder& recorder, int64_t span);

// request.wait() as a span on the track of waiting; without a recorder just the wait.
void wait_traced(Request& request, trace::Recorder* recorder, const char* name);

}  // namespace lamina::comm
