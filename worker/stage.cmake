# SPDX-License-Identifier: MIT
target_sources(pgpt_worker PRIVATE
  engine_stage.c http.c prepare.c running.c scheduler.c service.c step_ring.c stream.c text_stage.c)
