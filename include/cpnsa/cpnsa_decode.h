/* cpnsa in C11: prefill and decoding over paged KV caches. Included by cpnsa.h; docs/inference.md has the layout of
 * pages and the rules of a step. */
#ifndef CPNSA_DECODE_H
#define CPNSA_DECODE_H

#include "cpnsa/cpnsa.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The parts of a cache: the keys and values of each branch's tokens, and the summaries. */
typedef enum cpnsa_cache_part {
  CPNSA_CACHE_CMP = 1,
  CPNSA_CACHE_SLC = 2,
  CPNSA_CACHE_WIN = 3,
  CPNSA_CACHE_SUMMARIES = 4
} cpnsa_cache_part;

/* The layout of the caches and the largest step. The same on every rank. */
typedef struct cpnsa_decoder_options {
  size_t struct_size;
  int64_t page;                /* tokens of a page, a multiple of m; 0: m */
  int64_t summary_page;        /* summaries of a page; 0: whole token pages' summaries, at least 64 */
  int64_t max_sequences;       /* of a step */
  int64_t max_tokens;          /* of all sequences in one step */
  int64_t max_length;          /* tokens of a sequence, those of the step included */
  int32_t dtype;               /* cpnsa_dtype of the cache and of a step's tensors */
  int32_t shared_branches;     /* whether the three branches have the same keys and values */
  int32_t replicate_summaries; /* whether every rank holds all summaries: one message a step in place of three */
  int32_t checked;             /* whether the batch is read and compared on the host, which waits for the device */
  int32_t compare_parameters;  /* whether a layer's first step makes sure that all ranks hold the same parameters */
} cpnsa_decoder_options;
#define CPNSA_DECODER_OPTIONS_INIT \
  { sizeof(cpnsa_decoder_options), 0, 0, 1, 1, 0, CPNSA_F32, 1, 0, 0, 1 }

/* The pages of one part of the cache. */
typedef struct cpnsa_cache_layout {
  size_t struct_size;
  int32_t pages_with; /* cpnsa_cache_part whose pages and table hold this part: itself, or another */
  int32_t ranks;      /* that the pages are dealt to: page p to rank p mod ranks, in column p / ranks of its table */
  int64_t key_rows;   /* rows of a page of keys: [pages, key_rows, G, d_qk] */
  int64_t value_rows; /* rows of a page of values: [pages, value_rows, G, d_v] */
  size_t page_bytes;  /* of one page, keys and values */
} cpnsa_cache_layout;
#define CPNSA_CACHE_LAYOUT_INIT \
  { sizeof(cpnsa_cache_layout), 0, 0, 0, 0, 0 }

/* One layer's cache: views of the caller's memory. A part that shares another's pages is not given, or is the same. */
typedef struct cpnsa_kv_cache {
  size_t struct_size;
  cpnsa_branches k;         /* [pages, key_rows, G, d_qk] */
  cpnsa_branches v;         /* [pages, value_rows, G, d_v] */
  cpnsa_tensor summaries_k; /* [pages, key_rows, G, d_qk] */
  cpnsa_tensor summaries_v; /* [pages, value_rows, G, d_v] */
} cpnsa_kv_cache;
#define CPNSA_KV_CACHE_INIT \
  { sizeof(cpnsa_kv_cache), CPNSA_BRANCHES_NONE, CPNSA_BRANCHES_NONE, CPNSA_TENSOR_NONE, CPNSA_TENSOR_NONE }

/* Page ids in device memory [num_slots, columns], -1 where there is none; those of a part that shares another's pages
 * are not read. */
typedef struct cpnsa_page_table {
  const int32_t* pages;
  int64_t columns;
  int64_t pool_pages; /* pages in the pools; a page id is below it */
} cpnsa_page_table;

/* One step's sequences. Arrays are device memory and may change in place between replays of a captured graph. */
typedef struct cpnsa_decode_batch {
  size_t struct_size;
  int64_t sequences;      /* B */
  int64_t tokens;         /* rows of the step's tensors, at least cu_q[B] */
  int64_t num_slots;      /* rows of the page tables */
  const int32_t* slots;   /* [B]: the rows of the tables that the sequences have; NULL: 0, 1, ... */
  const int32_t* lengths; /* [num_slots]: tokens before the step; the caller adds those of the step */
  const int32_t* cu_q;    /* [B + 1]: sequence b appends rows [cu_q[b], cu_q[b + 1]) */
  cpnsa_page_table cmp;
  cpnsa_page_table slc;
  cpnsa_page_table win;
  cpnsa_page_table summaries;
} cpnsa_decode_batch;
#define CPNSA_PAGE_TABLE_NONE \
  { NULL, 0, 0 }
#define CPNSA_DECODE_BATCH_INIT                                                                          \
  {                                                                                                      \
    sizeof(cpnsa_decode_batch), 0, 0, 0, NULL, NULL, NULL, CPNSA_PAGE_TABLE_NONE, CPNSA_PAGE_TABLE_NONE, \
        CPNSA_PAGE_TABLE_NONE, CPNSA_PAGE_TABLE_NONE                                                     \
  }

/* The tensors that a step writes. */
typedef struct cpnsa_decode_outputs {
  size_t struct_size;
  cpnsa_tensor out;  /* [tokens, H, d_v] */
  int32_t* selected; /* device memory [tokens, G, n], or NULL */
  void* log_sum_exp; /* device memory [3, tokens, H], f64 for f64 caches, f32 for others, or NULL */
} cpnsa_decode_outputs;
#define CPNSA_DECODE_OUTPUTS_INIT \
  { sizeof(cpnsa_decode_outputs), CPNSA_TENSOR_NONE, NULL, NULL }

typedef struct cpnsa_decode_statistics {
  size_t struct_size;
  int64_t steps;
  int64_t messages;          /* collectives between ranks, agreements left out */
  int64_t bytes_received[8]; /* by kind: cpnsa_decode_traffic_name() */
} cpnsa_decode_statistics;
#define CPNSA_DECODE_STATISTICS_INIT         \
  {                                          \
    sizeof(cpnsa_decode_statistics), 0, 0, { \
      0                                      \
    }                                        \
  }

/* Steps of one batch shape, for all layers of one configuration. */
typedef struct cpnsa_decoder_object* cpnsa_decoder;

/* Collective. */
CPNSA_API cpnsa_status cpnsa_decoder_create(const cpnsa_config* config, const cpnsa_decoder_options* options,
                                            cpnsa_device device, cpnsa_communicator communicator,
                                            cpnsa_decoder* decoder);
CPNSA_API cpnsa_status cpnsa_decoder_destroy(cpnsa_decoder decoder);

/* Bytes of device memory that the caller provides, 256-byte aligned: a workspace, which the layers of a step share, and
 * the schedule of a prepared step. Pointers may be NULL. */
CPNSA_API cpnsa_status cpnsa_decoder_sizes(cpnsa_decoder decoder, size_t* workspace_bytes, size_t* schedule_bytes);

/* The pages of a part (cpnsa_cache_part). */
CPNSA_API cpnsa_status cpnsa_decoder_layout(cpnsa_decoder decoder, int32_t part, cpnsa_cache_layout* layout);

/* For a sequence of `length` tokens on this rank: the columns of its page table that are filled; the first token that a
 * step at this length or later reads of the part; the leading columns that it may share with a sequence whose first
 * `length` tokens are the same. Pointers may be NULL. */
CPNSA_API cpnsa_status cpnsa_decoder_pages(cpnsa_decoder decoder, int32_t part, int64_t length, int64_t* columns,
                                           int64_t* first_token, int64_t* shareable);

/* Prepares a step for all layers: `schedule` is read by cpnsa_decoder_step(). Then one cpnsa_decoder_step() per layer
 * on the same stream. With more than one rank both are collective, and every rank is given the same rows. */
CPNSA_API cpnsa_status cpnsa_decoder_prepare(cpnsa_decoder decoder, const cpnsa_decode_batch* batch, void* schedule,
                                             void* stream);

/* Appends the rows of `inputs` ([tokens, ...]) to the cache and computes their outputs. */
CPNSA_API cpnsa_status cpnsa_decoder_step(cpnsa_decoder decoder, const cpnsa_tensors* inputs,
                                          const cpnsa_kv_cache* cache, const cpnsa_decode_outputs* outputs,
                                          void* workspace, void* stream);

/* This rank's work since the decoder was made. */
CPNSA_API cpnsa_status cpnsa_decoder_statistics(cpnsa_decoder decoder, cpnsa_decode_statistics* statistics);

/* The name of an entry of bytes_received; NULL for an index that has no meaning in this version. */
CPNSA_API const char* cpnsa_decode_traffic_name(int index);

#ifdef __cplusplus
}
#endif

#endif /* CPNSA_DECODE_H */
