/* SPDX-License-Identifier: MIT
 *
 * network_weights: a model's tensors, packed as the kernels read them (format.cuh) and filled up
 * with zeros to their sizes, in device memory that the network owns. Used while a network opens.
 */
#ifndef PGPT_KERNELS_CUDA_NETWORK_WEIGHTS_H
#define PGPT_KERNELS_CUDA_NETWORK_WEIGHTS_H

#include "kernels/cuda/network.h"

enum { NETWORK_OWNED_MOST = 4096, NETWORK_HEAD = 64 };

/* Fills network->owned, of NETWORK_OWNED_MOST places, and all weights; sizes, layers and formats
 * are set. tables: the format of embeddings and of the output product. */
int network_weights_upload(struct network *network, const struct model *model,
                           enum cuda_format tables, struct error *error) PGPT_MUST_CHECK;

#endif
