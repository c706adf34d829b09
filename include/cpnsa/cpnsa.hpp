#pragma once

// Everything that the target cpnsa::cpnsa has. The backends have headers of their own: cpnsa/mpi/communicator.hpp,
// cpnsa/cuda/device.hpp, cpnsa/nccl/communicator.hpp.

#include "cpnsa/attention.hpp"
#include "cpnsa/callbacks/communicator.hpp"
#include "cpnsa/communicator.hpp"
#include "cpnsa/config.hpp"
#include "cpnsa/cpu/device.hpp"
#include "cpnsa/decode_forecast.hpp"
#include "cpnsa/decoder.hpp"
#include "cpnsa/device.hpp"
#include "cpnsa/device_memory.hpp"
#include "cpnsa/error.hpp"
#include "cpnsa/flight_recorder.hpp"
#include "cpnsa/forecast.hpp"
#include "cpnsa/info.hpp"
#include "cpnsa/interrupt.hpp"
#include "cpnsa/kv_cache.hpp"
#include "cpnsa/log.hpp"
#include "cpnsa/one_sided.hpp"
#include "cpnsa/page_allocator.hpp"
#include "cpnsa/partition.hpp"
#include "cpnsa/presets.hpp"
#include "cpnsa/step_record.hpp"
#include "cpnsa/tensor_view.hpp"
#include "cpnsa/threads/communicator.hpp"
