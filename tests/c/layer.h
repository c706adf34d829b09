/* One layer run from C: what the tests compare with what the C++ library's oracle says. */
#ifndef CPNSA_TESTS_C_LAYER_H
#define CPNSA_TESTS_C_LAYER_H

#include "cpnsa/cpnsa.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct layer_call {
  cpnsa_config config;
  cpnsa_options options;
  cpnsa_partition partition;
  cpnsa_device device;
  cpnsa_communicator communicator;
  void* stream;

  cpnsa_tensors inputs;
  cpnsa_tensor out;
  int32_t* selected;
  cpnsa_branches log_sum_exp; /* with any of them, the forward is cpnsa_forward_outputs() */
  cpnsa_tensor dout;          /* used with options.backward */
  cpnsa_tensors gradients;    /* used with options.backward */

  void* (*allocate)(void* user, size_t bytes); /* device memory filled with what reads as NaN */
  void (*deallocate)(void* user, void* memory);
  void* user;

  cpnsa_statistics statistics; /* set by run_layer */
} layer_call;

/* Makes the layer, runs forward and backward, and destroys it. */
cpnsa_status run_layer(layer_call* call);

#ifdef __cplusplus
}
#endif

#endif
