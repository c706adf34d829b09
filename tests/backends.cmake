# Which suites run on which devices and transports: an executable for each pair. A transport is one entry under
# "Backends" and one paragraph below.

# --- Suites, each compiled once ---
cpnsa_add_suite(golden SOURCES golden/golden_test.cpp)
cpnsa_add_suite(golden_16_bit SOURCES golden/golden_16_bit_test.cpp)
cpnsa_add_suite(
  kernel
  SOURCES
    kernels/backward_test.cpp
    kernels/decode_ops_test.cpp
    kernels/forward_test.cpp
    kernels/kernel_test.cpp
    kernels/moves_test.cpp
    kernels/variants_test.cpp
)
cpnsa_add_suite(
  communicator
  SOURCES
    conformance/communicator/failures_test.cpp
    conformance/communicator/messages_test.cpp
    conformance/communicator/transports.cpp
)
cpnsa_add_suite(
  attention
  SOURCES
    conformance/attention/agreement_test.cpp
    conformance/attention/attention_test.cpp
    conformance/attention/calls_test.cpp
    conformance/attention/corner_cases_test.cpp
    conformance/attention/errors_test.cpp
    conformance/attention/faults_test.cpp
    conformance/attention/gradients_test.cpp
    conformance/attention/memory_test.cpp
    conformance/attention/order_test.cpp
    conformance/attention/pull_test.cpp
    conformance/attention/repeats_test.cpp
    conformance/attention/statistics_test.cpp
    conformance/attention/step_record_test.cpp
    conformance/attention/variants_test.cpp
)
cpnsa_add_suite(
  decode
  SOURCES
    conformance/attention/attention_test.cpp
    conformance/decode/decode_test.cpp
    conformance/decode/errors_test.cpp
    conformance/decode/pages_test.cpp
    conformance/decode/rows_test.cpp
)

# --- Backends ---
cpnsa_add_test_backend(cpu SOURCES support/backend_cpu.cpp)
cpnsa_add_test_backend(threads SOURCES support/backend_threads.cpp)
cpnsa_add_test_backend(callbacks SOURCES support/backend_callbacks.cpp)
if(CPNSA_MPI)
  cpnsa_add_test_backend(
    mpi
    LABEL mpi
    LAUNCH mpirun
    LIBRARIES cpnsa::mpi
    SOURCES support/backend_mpi.cpp support/mpi_main.cpp
  )
endif()
if(CPNSA_CUDA)
  cpnsa_add_test_backend(cuda LABEL gpu LIBRARIES cpnsa::cuda SOURCES support/backend_cuda.cpp)
endif()
if(CPNSA_NCCL)
  cpnsa_add_test_backend(
    nccl
    LABEL gpu
    LAUNCH ranks
    LIBRARIES cpnsa::cuda cpnsa::nccl CUDA::cudart_static
    SOURCES support/backend_nccl.cpp support/nccl_job.cpp support/nccl_main.cpp
  )
endif()

# --- The CPU device alone, and ranks that are threads ---
cpnsa_add_test(kernels_test LABEL kernels SUITES kernel BACKENDS cpu)
cpnsa_add_test(golden_test LABEL golden SUITES golden BACKENDS cpu threads)
cpnsa_add_test(
  communicator_threads_test
  LABEL conformance
  SUITES communicator
  BACKENDS cpu threads
  SOURCES conformance/communicator/run_ranks_test.cpp
)
cpnsa_add_test(
  attention_test
  LABEL conformance
  SUITES attention
  BACKENDS cpu threads
  SOURCES
    conformance/attention/devices_that_fail_test.cpp
    conformance/attention/late_streams_test.cpp
    support/late_device.cpp
)

cpnsa_add_test(decode_test LABEL conformance SUITES decode BACKENDS cpu threads)

# --- The caller's own functions ---
cpnsa_add_test(
  communicator_callbacks_test
  LABEL conformance
  SUITES communicator
  BACKENDS cpu callbacks
  SOURCES conformance/communicator/callbacks_test.cpp conformance/communicator/far_device.cpp
)
cpnsa_add_test(
  attention_callbacks_test
  LABEL conformance
  SUITES attention
  BACKENDS cpu callbacks
  ENVIRONMENT CPNSA_TEST_SEEDS=1-2
)
cpnsa_add_test(
  decode_callbacks_test
  LABEL conformance
  SUITES decode
  BACKENDS cpu callbacks
  ENVIRONMENT CPNSA_TEST_SEEDS=1-2
)

# --- MPI. Every process computes the oracle, more of them than there are cores, so the layer's tests take fewer seeds.
cpnsa_add_test(golden_mpi_test SUITES golden BACKENDS cpu mpi RANKS 1 2 4 8)
cpnsa_add_test(
  communicator_mpi_test
  SUITES communicator
  BACKENDS cpu mpi
  RANKS 1 2 4 8
  SOURCES
    conformance/communicator/far_device.cpp
    conformance/communicator/mpi_in_chunks.cpp
    conformance/communicator/mpi_test.cpp
)
cpnsa_add_test(attention_mpi_test SUITES attention BACKENDS cpu mpi RANKS 1 2 4 8 ENVIRONMENT CPNSA_TEST_SEEDS=1-2)
cpnsa_add_test(decode_mpi_test SUITES decode BACKENDS cpu mpi RANKS 2 4 ENVIRONMENT CPNSA_TEST_SEEDS=1-2)
if(TARGET decode_mpi_test)
  set_property(TEST mpi/decode_mpi_test_4 APPEND PROPERTY ENVIRONMENT "GTEST_FILTER=*Errors*:*Random*:*Messages*")
endif()

# --- The CUDA device alone, and ranks that are threads and share a GPU with whatever else is tested on it ---
cpnsa_add_test(kernels_cuda_test SUITES kernel BACKENDS cuda)
cpnsa_add_test(golden_cuda_test SUITES golden_16_bit BACKENDS cuda threads)
cpnsa_add_test(attention_cuda_test SUITES attention BACKENDS cuda threads TIMEOUT 900)
cpnsa_add_test(decode_cuda_test SUITES decode BACKENDS cuda threads)
if(CPNSA_TOOLS) # the command's random numbers fill the GPU's memory
  cpnsa_add_test(
    long_sequence_test
    BACKENDS cuda
    SOURCES conformance/attention/long_sequence_test.cpp
    LIBRARIES cpnsa_command
  )
endif()

# --- NCCL. Ranks are processes that the test starts, on one GPU too, where they take turns: eight take minutes.
cpnsa_add_test(golden_nccl_test SUITES golden_16_bit BACKENDS cuda nccl RANKS 1 2 4 8 TIMEOUT 900)
cpnsa_add_test(
  communicator_nccl_test
  SUITES communicator
  BACKENDS cuda nccl
  RANKS 1 2 3
  SOURCES conformance/communicator/nccl_test.cpp
)
cpnsa_add_test(attention_nccl_test SUITES attention BACKENDS cuda nccl RANKS 1 2 TIMEOUT 900)
if(TARGET attention_nccl_test)
  set_property(TEST gpu/attention_nccl_test_1 APPEND PROPERTY ENVIRONMENT CPNSA_TEST_SEEDS=1-2)
  set_property(TEST gpu/attention_nccl_test_2 APPEND PROPERTY ENVIRONMENT CPNSA_TEST_SEEDS=1-1)
endif()
