#include <stdexcept>

#include "cpnsa/nccl/communicator.hpp"
#include "tests/c/convert.hpp"
#include "tests/c/transports.hpp"
#include "tests/support/nccl_job.hpp"

namespace cpnsa::test {
namespace {

std::vector<int> rank_counts() {
  return {NcclJob::size()};
}

std::unique_ptr<Communicator> own() {
  return nccl::make_communicator(NcclJob::next_id(), NcclJob::size(), NcclJob::rank());
}

void run_by_id(int ranks, const CTransport::Body& body) {
  const ncclUniqueId id = NcclJob::next_id();
  cpnsa_communicator handle = nullptr;
  check_c(cpnsa_communicator_create_nccl(&id, NcclJob::rank(), ranks, &handle));
  body(*own(), handle);
  check_c(cpnsa_communicator_destroy(handle));
}

void run_borrowed(int ranks, const CTransport::Body& body) {
  ncclComm_t comm = nullptr;
  if (ncclCommInitRank(&comm, ranks, NcclJob::next_id(), NcclJob::rank()) != ncclSuccess)
    throw std::runtime_error("ncclCommInitRank failed");
  cpnsa_communicator handle = nullptr;
  check_c(cpnsa_communicator_borrow_nccl(comm, &handle));
  body(*own(), handle);
  check_c(cpnsa_communicator_destroy(handle));
  if (ncclCommDestroy(comm) != ncclSuccess) throw std::runtime_error("the borrowed communicator was touched");
}

const bool registered = add(c_transports(), CTransport{"nccl", rank_counts, run_by_id}) &&
                        add(c_transports(), CTransport{"nccl_borrowed", rank_counts, run_borrowed});

}  // namespace
}  // namespace cpnsa::test
