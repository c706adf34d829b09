#include "cpnsa/attention.hpp"
#include "cpnsa/config.hpp"

namespace cpnsa {

std::string_view name_of(Compressor compressor) {
  switch (compressor) {
    case Compressor::mean: return "mean";
    case Compressor::linear: return "linear";
    case Compressor::mlp: return "mlp";
  }
  return "?";
}

std::string_view name_of(Activation activation) {
  switch (activation) {
    case Activation::silu: return "silu";
    case Activation::relu: return "relu";
    case Activation::gelu: return "gelu";
  }
  return "?";
}

std::string_view name_of(GateKind gate) {
  switch (gate) {
    case GateKind::logits: return "logits";
    case GateKind::values: return "values";
  }
  return "?";
}

std::string_view name_of(Exchange exchange) {
  switch (exchange) {
    case Exchange::automatic: return "auto";
    case Exchange::fetch: return "fetch";
    case Exchange::gather: return "gather";
  }
  return "?";
}

std::string_view name_of(Traffic traffic) {
  switch (traffic) {
    case Traffic::summaries: return "summaries";
    case Traffic::halo: return "halo";
    case Traffic::blocks: return "blocks";
    case Traffic::refetched_blocks: return "refetched_blocks";
    case Traffic::block_gradients: return "block_gradients";
    case Traffic::summary_gradients: return "summary_gradients";
    case Traffic::halo_gradients: return "halo_gradients";
    case Traffic::parameter_gradients: return "parameter_gradients";
    case Traffic::control: return "control";
  }
  return "?";
}

std::string_view name_of(Stage stage) {
  switch (stage) {
    case Stage::exchange_halo: return "exchange_halo";
    case Stage::compress: return "compress";
    case Stage::gather_summaries: return "gather_summaries";
    case Stage::window: return "window";
    case Stage::compressed: return "compressed";
    case Stage::select: return "select";
    case Stage::demand: return "demand";
    case Stage::fetch_blocks: return "fetch_blocks";
    case Stage::selected: return "selected";
    case Stage::combine: return "combine";
    case Stage::combine_backward: return "combine_backward";
    case Stage::window_backward: return "window_backward";
    case Stage::refetch_blocks: return "refetch_blocks";
    case Stage::selected_backward: return "selected_backward";
    case Stage::return_block_gradients: return "return_block_gradients";
    case Stage::compressed_backward: return "compressed_backward";
    case Stage::reduce_summary_gradients: return "reduce_summary_gradients";
    case Stage::compress_backward: return "compress_backward";
    case Stage::return_halo_gradients: return "return_halo_gradients";
    case Stage::finish_gradients: return "finish_gradients";
  }
  return "?";
}

}  // namespace cpnsa
