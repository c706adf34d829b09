#include "tests/c/layer.h"

typedef struct layer_memory {
  void* workspace;
  void* saved_memory;
  cpnsa_saved saved;
} layer_memory;

static cpnsa_status run_forward(layer_call* call, cpnsa_attention layer, const layer_memory* memory) {
  const cpnsa_branches* wanted = &call->log_sum_exp;
  cpnsa_outputs outputs = CPNSA_OUTPUTS_INIT;
  if (!wanted->cmp.data && !wanted->slc.data && !wanted->win.data)
    return cpnsa_forward(layer, &call->inputs, &call->out, call->selected, memory->saved, memory->workspace,
                         call->stream);
  outputs.out = call->out;
  outputs.selected = call->selected;
  outputs.log_sum_exp = *wanted;
  return cpnsa_forward_outputs(layer, &call->inputs, &outputs, memory->saved, memory->workspace, call->stream);
}

static cpnsa_status run_steps(layer_call* call, cpnsa_attention layer, const layer_memory* memory) {
  cpnsa_status status = run_forward(call, layer, memory);
  if (status == CPNSA_SUCCESS && call->options.backward)
    status = cpnsa_backward(layer, &call->inputs, &call->dout, memory->saved, &call->gradients, memory->workspace,
                            call->stream);
  if (status != CPNSA_SUCCESS) return status;
  return cpnsa_attention_statistics(layer, &call->statistics); /* waits for the steps */
}

static cpnsa_status run_with_memory(layer_call* call, cpnsa_attention layer) {
  layer_memory memory = {NULL, NULL, NULL};
  size_t workspace_bytes = 0, saved_bytes = 0;
  cpnsa_status status = cpnsa_attention_sizes(layer, NULL, &workspace_bytes, &saved_bytes);
  if (status != CPNSA_SUCCESS) return status;
  memory.workspace = call->allocate(call->user, workspace_bytes);
  memory.saved_memory = call->allocate(call->user, saved_bytes);
  if (call->options.backward) status = cpnsa_saved_create(memory.saved_memory, &memory.saved);
  if (status == CPNSA_SUCCESS) status = run_steps(call, layer, &memory);
  if (cpnsa_saved_destroy(memory.saved) != CPNSA_SUCCESS) status = CPNSA_ERROR_INTERNAL;
  call->deallocate(call->user, memory.saved_memory);
  call->deallocate(call->user, memory.workspace);
  return status;
}

cpnsa_status run_layer(layer_call* call) {
  const cpnsa_statistics nothing = CPNSA_STATISTICS_INIT;
  cpnsa_attention layer = NULL;
  cpnsa_status status =
      cpnsa_attention_create(&call->config, &call->options, call->partition, call->device, call->communicator, &layer);
  call->statistics = nothing;
  if (status != CPNSA_SUCCESS) return status;
  status = run_with_memory(call, layer);
  if (cpnsa_attention_destroy(layer) != CPNSA_SUCCESS) status = CPNSA_ERROR_INTERNAL;
  return status;
}
