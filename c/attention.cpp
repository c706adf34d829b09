#include "cpnsa/attention.hpp"

#include <memory>
#include <tuple>

#include "c/objects.hpp"
#include "c/parameters.hpp"
#include "cpnsa/presets.hpp"

using namespace cpnsa::c;
using cpnsa::Attention;

namespace {

// Runs one collective call of a layer with its prepared arguments.
template <class Prepare, class Call>
void run(cpnsa_attention handle, Prepare prepare, Call call) {
  const auto object = attentions().find(handle);
  const InUse layer(object->exclusive), communicator(object->communicator->exclusive);
  call(*object->attention,
       prepared_or_refused(prepare, [&](const char* problem) { object->attention->refuse(problem); }));
}

// The saved forward of a handle while a call uses it; none for NULL.
struct UsedSaved {
  explicit UsedSaved(cpnsa_saved handle) : object(handle ? saved_forwards().find(handle) : nullptr) {
    if (object) in_use = std::make_unique<InUse>(object->exclusive);
  }
  cpnsa::SavedForward* get() const { return object ? &object->saved : nullptr; }

  std::shared_ptr<SavedObject> object;
  std::unique_ptr<InUse> in_use;
};

}  // namespace

cpnsa_status cpnsa_config_preset(const char* name, cpnsa_config* config) {
  return guarded(__func__, [&] {
    not_null(name, "name");
    write(cpnsa::preset(name), config);
  });
}

cpnsa_status cpnsa_attention_create(const cpnsa_config* config, const cpnsa_options* options, cpnsa_partition partition,
                                    cpnsa_device device, cpnsa_communicator communicator, cpnsa_attention* out) {
  return guarded(__func__, [&] {
    const auto ranks = communicators().find(communicator);
    const InUse in_use(ranks->exclusive);
    const auto [made_config, made_options, made_partition, made_device] = prepared_or_refused(
        [&] {
          not_null(out, "attention") = nullptr;
          return std::tuple(to_config(config), to_options(options), partitions().find(partition),
                            devices().find(device));
        },
        [&](const char* problem) { cpnsa::refuse(*ranks->communicator, problem); });
    const auto object = std::make_shared<AttentionObject>(made_device, ranks);
    object->attention =
        std::make_unique<Attention>(made_config, *made_partition, *made_device, *ranks->communicator, made_options);
    *out = attentions().add(object);
  });
}

cpnsa_status cpnsa_attention_sizes(cpnsa_attention attention, int64_t* rows, size_t* workspace_bytes,
                                   size_t* saved_bytes) {
  return guarded(__func__, [&] {
    const auto object = attentions().find(attention);
    if (rows) *rows = object->attention->rows();
    if (workspace_bytes) *workspace_bytes = object->attention->workspace_bytes();
    if (saved_bytes) *saved_bytes = object->attention->saved_bytes();
  });
}

cpnsa_status cpnsa_saved_create(void* memory, cpnsa_saved* out) {
  return guarded(__func__, [&] {
    create(saved_forwards(), out, "saved", [&] {
      auto object = std::make_shared<SavedObject>();
      object->saved.memory = memory;
      return object;
    });
  });
}

cpnsa_status cpnsa_saved_destroy(cpnsa_saved saved) {
  return guarded(__func__, [&] { saved_forwards().remove(saved); });
}

cpnsa_status cpnsa_forward(cpnsa_attention attention, const cpnsa_tensors* inputs, const cpnsa_tensor* out,
                           int32_t* selected, cpnsa_saved saved, void* workspace, void* stream) {
  return guarded(__func__, [&] {
    run(
        attention,
        [&] { return std::tuple(to_inputs(inputs), to_view(not_null(out, "out"), "out"), UsedSaved(saved)); },
        [&](Attention& layer, const auto& prepared) {
          const auto& [views, out_view, used] = prepared;
          layer.forward(views, out_view, selected, used.get(), workspace, {stream});
        });
  });
}

cpnsa_status cpnsa_forward_outputs(cpnsa_attention attention, const cpnsa_tensors* inputs, const cpnsa_outputs* outputs,
                                   cpnsa_saved saved, void* workspace, void* stream) {
  return guarded(__func__, [&] {
    run(
        attention, [&] { return std::tuple(to_inputs(inputs), to_outputs(outputs), UsedSaved(saved)); },
        [&](Attention& layer, const auto& prepared) {
          const auto& [views, to, used] = prepared;
          layer.forward(views, to.out, to.selected, used.get(), workspace, {stream}, to.log_sum_exp);
        });
  });
}

cpnsa_status cpnsa_backward(cpnsa_attention attention, const cpnsa_tensors* inputs, const cpnsa_tensor* dout,
                            cpnsa_saved saved, const cpnsa_tensors* gradients, void* workspace, void* stream) {
  return guarded(__func__, [&] {
    run(
        attention,
        [&] {
          UsedSaved used(saved);
          not_null(used.get(), "saved");
          return std::tuple(to_inputs(inputs), to_view(not_null(dout, "dout"), "dout"), std::move(used),
                            to_gradients(gradients));
        },
        [&](Attention& layer, const auto& prepared) {
          const auto& [views, dout_view, used, gradient_views] = prepared;
          layer.backward(views, dout_view, *used.get(), gradient_views, workspace, {stream});
        });
  });
}

cpnsa_status cpnsa_attention_statistics(cpnsa_attention attention, cpnsa_statistics* statistics) {
  return guarded(__func__, [&] {
    const auto object = attentions().find(attention);
    const InUse layer(object->exclusive), communicator(object->communicator->exclusive);
    write(object->attention->statistics(), statistics);
  });
}

const char* cpnsa_traffic_name(int index) {
  return index >= 0 && index < cpnsa::traffic_kinds ? name_of(static_cast<cpnsa::Traffic>(index)).data() : nullptr;
}

const char* cpnsa_stage_name(int index) {
  return index >= 0 && index < cpnsa::stage_count ? name_of(static_cast<cpnsa::Stage>(index)).data() : nullptr;
}

cpnsa_status cpnsa_attention_destroy(cpnsa_attention attention) {
  return guarded(__func__, [&] { attentions().remove(attention); });
}
