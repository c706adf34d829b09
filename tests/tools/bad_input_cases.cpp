#include "tests/tools/bad_input_cases.hpp"

#include <cstdint>

#include "tests/tools/test_files.hpp"

namespace cpnsa::test {
namespace {

namespace fs = std::filesystem;

BadInput config_text(const std::string& name, const std::string& text, std::vector<std::string> expected) {
  expected.insert(expected.begin(), "config.json");
  return {name, [text](const fs::path& in) { write_file(in / "config.json", text); }, {}, std::move(expected)};
}

BadInput config_value(const std::string& key, const std::string& value, const std::string& found,
                      const std::string& expected) {
  return config_text(key + " = " + value, layer_config(key, value), {key, "found " + found, "expected", expected});
}

BadInput replaced(const std::string& name, const std::string& file, const std::string& bytes,
                  std::vector<std::string> expected) {
  expected.insert(expected.begin(), file);
  return {name, [file, bytes](const fs::path& in) { write_file(in / file, bytes); }, {}, std::move(expected)};
}

BadInput q_dictionary(const std::string& name, const std::string& dictionary, std::vector<std::string> expected) {
  const std::string data(static_cast<std::size_t>(layer_tokens * 2 * 8) * 4, '\0');
  return replaced(name, "q.npy", npy_bytes(dictionary, data), std::move(expected));
}

BadInput removed(const std::string& file) {
  return {"no " + file, [file](const fs::path& in) { fs::remove(in / file); }, {}, {file, "No such file", "expected"}};
}

BadInput reshaped(const std::string& tensor, const std::vector<std::int64_t>& shape, const std::string& found,
                  const std::string& expected) {
  return {tensor + " of shape " + found,
          [=](const fs::path& in) { write_random_tensor(in / (tensor + ".npy"), shape); },
          {},
          {tensor + ".npy", "found f4 " + found, "expected", expected}};
}

BadInput bounds(const std::string& name, const std::vector<std::int64_t>& values, const std::string& found,
                const std::string& expected) {
  return replaced("cu_seqlens " + name, "cu_seqlens.npy",
                  npy_file("<i8", {static_cast<std::int64_t>(values.size())}, bytes_of(values)),
                  {"found " + found, "expected " + expected});
}

BadInput flags(const std::string& name, std::vector<std::string> arguments, std::vector<std::string> expected) {
  return {name, [](const fs::path&) {}, std::move(arguments), std::move(expected)};
}

}  // namespace

std::vector<BadInput> bad_configs() {
  return {
      removed("config.json"),
      config_text("config empty", "", {"line 1, column 1", "expected"}),
      config_text("config malformed", "{\n  \"window\": 12,\n  oops\n}", {"line 3, column 3", "expected"}),
      config_text("config cut off", "{\"window\": 12", {"malformed JSON", "expected"}),
      config_text("config an array", "[1, 2]", {"found an array", "expected an object"}),
      config_text("config deeply nested", std::string(100000, '['), {"malformed JSON"}),
      config_text("config key twice", "{\"window\": 1, \"window\": 2}", {"window", "twice"}),
      config_value("select_blocks", "64", "an unknown key", "select_block, the nearest of num_q_heads"),
      config_value("dropout", "0.1", "an unknown key", "one of num_q_heads"),
      config_value("softcap", "30", "30", "none: scores have no soft cap (docs/algorithm.md)"),
      config_value("attn_logit_softcapping", "null", "null", "none: scores have no soft cap"),
      config_value("compress_hidden_k", "64", "an unknown key", "num_q_heads"),  // an extent of compress_k_w1
      config_value("window", "\"512\"", "\"512\"", "a whole number"),
      config_value("window", "-5", "-5", "a whole number"),
      config_value("window", "32.5", "32.5", "a whole number"),
      config_value("window", "1e30", "1e+30", "a whole number"),
      config_value("window", "99999999999999999999", "1e+20", "a whole number"),
      config_value("window", "9999999999999", "9999999999999", "a whole number"),
      config_text("number beyond double", layer_config("window", "1e999"), {"out of range"}),
      config_value("window", "0", "0", "a whole number"),
      config_value("window", "true", "true", "a whole number"),
      config_value("window", "null", "null", "a whole number"),
      config_value("window", "[12]", "an array", "a whole number"),
      config_value("num_q_heads", "", "no such key", "a whole number"),
      config_value("softmax_scale", "\"1\"", "\"1\"", "a number"),
      config_value("compressor", "\"conv\"", "\"conv\"", "\"mean\""),
      config_value("activation", "3", "3", "\"silu\""),
      config_value("gate", "\"softmax\"", "\"softmax\"", "\"logits\""),
      config_text("too many forced blocks", layer_config("init_blocks", "3"),
                  {"init_blocks + local_blocks", "found 5", "select_count = 4"}),
      config_text("stride does not divide l", layer_config("compress_stride", "3"),
                  {"compress_stride", "found 3", "compress_block = 8"}),
      config_text("stride does not divide m", layer_config("select_block", "14"),
                  {"compress_stride", "found 4", "select_block = 14"}),
      config_text("l beyond m", layer_config("compress_block", "16"),
                  {"compress_block", "found 16", "select_block = 8"}),
      config_text("heads not a multiple", layer_config("num_kv_heads", "3"),
                  {"num_q_heads", "found 2", "num_kv_heads = 3"}),
  };
}

std::vector<BadInput> bad_arrays() {
  const std::string good = npy_dictionary("<f4", "(70, 2, 8)");
  const std::string magic("\x93NUMPY", 6);
  return {
      removed("q.npy"),
      removed("gate.npy"),
      removed("v.npy"),
      removed("compress_k_b2.npy"),
      removed("compress_v_w1.npy"),
      {"q a folder",
       [](const fs::path& in) {
         fs::remove(in / "q.npy");
         fs::create_directory(in / "q.npy");
       },
       {},
       {"q.npy", "found a folder", "expected a regular file"}},
      replaced("empty file", "q.npy", "", {"found 0 bytes", "expected"}),
      replaced("not NumPy", "q.npy", "PK\x03\x04 a zip archive", {"magic", "expected"}),
      replaced("future version", "q.npy", magic + std::string("\x09\x00\x10\x00", 4) + good, {"9.0", "expected 1.0"}),
      replaced("header beyond the file", "q.npy", magic + std::string("\x01\x00\xff\xff", 4) + good,
               {"truncated", "expected"}),
      replaced("header of gigabytes", "q.npy", magic + std::string("\x02\x00\xff\xff\xff\xff", 6) + good,
               {"4294967295", "expected at most"}),
      replaced("truncated data", "q.npy", npy_bytes(good, std::string(100, 'x')),
               {"found 100 bytes", "truncated", "expected 4480"}),
      replaced("trailing bytes", "dout.npy", npy_file("<f4", {70, 2, 6}, std::string(70 * 12 * 4 + 1, '\0')),
               {"found 3361 bytes", "trailing", "expected 3360"}),
      q_dictionary("Fortran order", npy_dictionary("<f4", "(70, 2, 8)", true), {"found Fortran order", "expected C"}),
      q_dictionary("big endian", npy_dictionary(">f4", "(70, 2, 8)"), {"'>f4'", "big endian", "expected"}),
      q_dictionary("pickled objects", npy_dictionary("|O", "(70, 2, 8)"), {"'|O'", "pickled", "expected"}),
      q_dictionary("complex numbers", npy_dictionary("<c8", "(70, 2, 8)"), {"'<c8'", "expected"}),
      q_dictionary("a structure", "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (70, 2, 8), }",
                   {"structured", "expected"}),
      q_dictionary("integers", npy_dictionary("<i4", "(70, 2, 8)"), {"i4 [70, 2, 8]", "expected floats"}),
      q_dictionary("overflowing shape", npy_dictionary("<f4", "(4294967296, 4294967296, 8)"), {"4294967296", "2^63"}),
      q_dictionary("overflowing extent", npy_dictionary("<f4", "(99999999999999999999, 2, 8)"), {"expected an extent"}),
      q_dictionary("negative extent", npy_dictionary("<f4", "(-70, 2, 8)"), {"expected an extent"}),
      q_dictionary("no shape", "{'descr': '<f4', 'fortran_order': False, }", {"no shape", "expected"}),
      q_dictionary("unknown header key", "{'descr': '<f4', 'order': 3}", {"'order'", "expected"}),
      q_dictionary("no dictionary", "import os; os.abort()", {"expected '{'"}),
      q_dictionary("open string", "{'descr", {"expected a quoted string"}),
      q_dictionary("nothing but brackets", std::string(5000, '('), {"expected"}),
  };
}

std::vector<BadInput> bad_shapes() {
  return {
      reshaped("q", {70, 3, 8}, "[70, 3, 8]", "num_q_heads = 2"),
      reshaped("q", {70, 2, 7}, "[70, 2, 7]", "head_dim_qk = 8"),
      reshaped("q", {70, 16}, "[70, 16]", "[T, num_q_heads = 2, head_dim_qk = 8]"),
      reshaped("q", {0, 2, 8}, "[0, 2, 8]", "at least 1"),
      reshaped("k", {69, 1, 8}, "[69, 1, 8]", "T = 70"),
      reshaped("v", {70, 1, 8}, "[70, 1, 8]", "head_dim_v = 6"),
      reshaped("gate", {70, 2, 2}, "[70, 2, 2]", "branches = 3"),
      reshaped("dout", {70, 2, 8}, "[70, 2, 8]", "head_dim_v = 6"),
      reshaped("compress_k_pos", {1, 4, 8}, "[1, 4, 8]", "compress_block = 8"),
      reshaped("compress_k_w1", {1, 63, 5}, "[1, 63, 5]", "compress_block * head_dim_qk = 64"),
      reshaped("compress_k_w1", {1, 64, 0}, "[1, 64, 0]", "hidden"),
      reshaped("compress_k_w2", {1, 4, 8}, "[1, 4, 8]", "hidden = 5"),
      reshaped("compress_v_b1", {6}, "[6]", "[num_kv_heads = 1, hidden = 6]"),
      {"shared and separate keys",
       [](const fs::path& in) {
         write_random_tensor(in / "k_win.npy", {70, 1, 8});
       },
       {},
       {"k.npy", "k_win.npy", "expected either"}},
      {"five of six branches",
       [](const fs::path& in) {
         fs::remove(in / "k.npy");
         fs::remove(in / "v.npy");
         for (const char* name : {"k_cmp", "k_slc", "k_win"})
           write_random_tensor(in / (std::string(name) + ".npy"), {70, 1, 8});
         for (const char* name : {"v_cmp", "v_slc"}) write_random_tensor(in / (std::string(name) + ".npy"), {70, 1, 6});
       },
       {},
       {"v_win.npy", "No such file", "expected"}},
      {"a parameter of another compressor",
       [](const fs::path& in) {
         write_random_tensor(in / "compress_k_weight.npy", {1, 64, 8});
       },
       {},
       {"compress_k_weight.npy", "expected none", "mlp"}},
      replaced("cu_seqlens of floats", "cu_seqlens.npy", npy_file("<f4", {2}, std::string(8, '\0')),
               {"found f4 [2]", "expected i4 or i8"}),
      replaced("cu_seqlens a matrix", "cu_seqlens.npy", npy_file("<i4", {2, 2}, std::string(16, '\0')),
               {"found i4 [2, 2]", "expected i4 or i8"}),
      bounds("too short", {70}, "i8 [1]", "i4 or i8 [documents + 1]"),
      bounds("not from 0", {1, 70}, "1 first", "0"),
      bounds("descending", {0, 50, 40, 70}, "40 after 50", "an ascending"),
      bounds("negative", {0, -8, 70}, "-8 after 0", "an ascending"),
      bounds("before T", {0, 30, 60}, "60 last", "T = 70"),
      bounds("beyond T", {0, 30, std::int64_t{1} << 62}, "4611686018427387904 last", "T = 70"),
  };
}

std::vector<BadInput> bad_flags() {
  return {
      flags("unknown flag", {"--frobnicate"}, {"--frobnicate", "expected"}),
      flags("stray argument", {"stray"}, {"stray", "expected"}),
      flags("device", {"--device", "tpu"}, {"--device", "found tpu", "expected one of auto|cpu|cuda"}),
      flags("transport", {"--transport", "udp"}, {"--transport", "found udp", "expected one of"}),
      flags("partition", {"--partition", "stripes"}, {"--partition", "found stripes", "expected one of"}),
      flags("exchange", {"--exchange", "swap"}, {"--exchange", "found swap", "expected one of"}),
      flags("dtype", {"--dtype", "f8"}, {"--dtype", "found f8", "expected one of f64|f32|bf16|f16"}),
      flags("flag without value", {"--dtype"}, {"--dtype"}),
      flags("switch with a value", {"--no-backward=3"}, {"--no-backward", "found a value", "expected none"}),
      flags("flag twice", {"--dtype", "f32", "--dtype", "f64"}, {"--dtype"}),
      flags("empty value", {"--dtype", ""}, {"--dtype", "expected one of"}),
  };
}

}  // namespace cpnsa::test
