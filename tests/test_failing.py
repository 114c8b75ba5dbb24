# SPDX-License-Identifier: Apache-2.0
"""Inputs that people really have, on which programs of this kind fail.

A row is an input, and the tests of what is right for it.
"""

import failing_data as data
import failing_environment as environment
import failing_weights as weights
import pytest

# Fixtures of the tests.
folder, files = weights.folder, weights.files
stopped, workplace = environment.stopped, environment.workplace

pytestmark = pytest.mark.filterwarnings('ignore:UNTRAINED')


# ------------------------------------------------------------- silently wrong

# 12 bits of a TIFF.
test_a_tiff_of_12_bits_is_scaled_by_its_bits = (
  data.test_a_tiff_of_12_bits_is_scaled_by_its_bits
)

# 32 bits, signed values, modes I and F.
test_values_without_an_agreed_white_are_refused = (
  data.test_values_without_an_agreed_white_are_refused
)
test_an_image_made_in_python_without_a_known_white_is_refused = (
  data.test_an_image_made_in_python_without_a_known_white_is_refused
)
test_an_opened_image_of_16_bits_is_read_as_its_file = (
  data.test_an_opened_image_of_16_bits_is_read_as_its_file
)
test_a_copy_of_16_bits_has_no_known_white = (
  data.test_a_copy_of_16_bits_has_no_known_white
)
test_a_tiff_that_is_not_decoded_says_what_it_has = (
  data.test_a_tiff_that_is_not_decoded_says_what_it_has
)
test_the_advice_for_what_pillow_does_not_read_is_8_bits = (
  data.test_the_advice_for_what_pillow_does_not_read_is_8_bits
)

# Planes of 16 bits.
test_planes_are_read_by_their_bits_or_refused = (
  data.test_planes_are_read_by_their_bits_or_refused
)

# White is zero.
test_white_is_zero_is_not_a_negative = data.test_white_is_zero_is_not_a_negative

# A hidden copy in a folder.
test_what_is_hidden_is_left_out_and_counted = (
  data.test_what_is_hidden_is_left_out_and_counted
)
test_a_hidden_copy_changes_no_features = (
  data.test_a_hidden_copy_changes_no_features
)
test_a_folder_that_is_hidden_itself_may_be_given = (
  data.test_a_folder_that_is_hidden_itself_may_be_given
)

# A ClassLabel of WordNet ids.
test_a_class_label_is_known_by_its_name = (
  data.test_a_class_label_is_known_by_its_name
)
test_names_that_fit_no_class_are_an_error_of_evaluate = (
  data.test_names_that_fit_no_class_are_an_error_of_evaluate
)
test_a_name_and_a_number_that_contradict_each_other = (
  data.test_a_name_and_a_number_that_contradict_each_other
)
test_a_column_of_names_comes_before_one_of_numbers = (
  data.test_a_column_of_names_comes_before_one_of_numbers
)
test_numbers_of_classes_without_names_are_taken_and_that_is_said = (
  data.test_numbers_of_classes_without_names_are_taken_and_that_is_said
)
test_imagenets_two_cranes_are_told_apart_by_their_place = (
  data.test_imagenets_two_cranes_are_told_apart_by_their_place
)

# Names with a byte order mark.
test_folders_are_classes_by_name = data.test_folders_are_classes_by_name

# A blank or wrong name among the classes.
test_one_folder_with_another_name_is_named = (
  data.test_one_folder_with_another_name_is_named
)
test_names_in_another_case_are_not_put_in_alphabetical_order = (
  data.test_names_in_another_case_are_not_put_in_alphabetical_order
)
test_alphabetical_order_is_said = data.test_alphabetical_order_is_said
test_no_order_stands_for_names_on_both_sides = (
  data.test_no_order_stands_for_names_on_both_sides
)
test_numbers_of_folders_are_the_classes = (
  data.test_numbers_of_folders_are_the_classes
)
test_class_names_may_begin_with_wordnet_ids = (
  data.test_class_names_may_begin_with_wordnet_ids
)
test_a_class_name_that_occurs_twice_is_no_name = (
  data.test_a_class_name_that_occurs_twice_is_no_name
)
test_folders_of_imagenet_by_id_name_or_synonym = (
  data.test_folders_of_imagenet_by_id_name_or_synonym
)
test_wordnet_ids_of_another_network_are_not_imagenets_numbers = (
  data.test_wordnet_ids_of_another_network_are_not_imagenets_numbers
)

# Timm's config.json: blur pools, pool, activation, squash, oblong.
test_what_timms_configuration_states_is_not_ignored = (
  weights.test_what_timms_configuration_states_is_not_ignored
)
test_what_timms_configuration_states_is_honoured = (
  weights.test_what_timms_configuration_states_is_honoured
)
test_a_published_folder_of_timms_is_read = (
  weights.test_a_published_folder_of_timms_is_read
)

# Arch of another network.
test_arch_blur = weights.test_arch_blur
test_the_names_of_plain_networks_are_known = (
  weights.test_the_names_of_plain_networks_are_known
)
test_a_name_that_says_nothing_is_noted = (
  weights.test_a_name_that_says_nothing_is_noted
)
test_settings_of_plain_networks_are_not_refused = (
  weights.test_settings_of_plain_networks_are_not_refused
)

# A thousand classes of its own.
test_a_thousand_names_that_are_not_imagenets_are_taken = (
  weights.test_a_thousand_names_that_are_not_imagenets_are_taken
)
test_imagenets_names_in_other_spellings_keep_their_wordnet_ids = (
  weights.test_imagenets_names_in_other_spellings_keep_their_wordnet_ids
)
test_a_file_beside_a_configuration_says_so = (
  weights.test_a_file_beside_a_configuration_says_so
)


# ------------------------------------------------ cannot be read, or left out

# Checkpoints as training programs write them.
test_the_one_network_of_a_checkpoint_is_read = (
  weights.test_the_one_network_of_a_checkpoint_is_read
)
test_of_two_networks_one_is_chosen = weights.test_of_two_networks_one_is_chosen
test_a_network_of_a_safetensors_file_is_chosen = (
  weights.test_a_network_of_a_safetensors_file_is_chosen
)
test_an_average_is_taken_if_it_is_chosen = (
  weights.test_an_average_is_taken_if_it_is_chosen
)
test_the_setting_chooses_in_python_and_in_jobs = (
  weights.test_the_setting_chooses_in_python_and_in_jobs
)
test_a_prefix_where_there_is_nothing_to_choose_is_refused = (
  weights.test_a_prefix_where_there_is_nothing_to_choose_is_refused
)
test_another_network_is_not_taken_for_the_plain_one_in_it = (
  weights.test_another_network_is_not_taken_for_the_plain_one_in_it
)
test_a_learned_pool_is_another_network = (
  weights.test_a_learned_pool_is_another_network
)
test_a_dilated_body_is_not_taken_for_a_plain_one = (
  weights.test_a_dilated_body_is_not_taken_for_a_plain_one
)
test_a_convolution_may_have_a_bias = weights.test_a_convolution_may_have_a_bias
test_what_is_missing_is_named = weights.test_what_is_missing_is_named
test_lists_in_messages_are_short = weights.test_lists_in_messages_are_short

# Timm's label_names.
test_timms_class_names_are_taken = weights.test_timms_class_names_are_taken

# Labels of any type in shards.
test_a_label_of_any_type_stops_only_evaluate = (
  data.test_a_label_of_any_type_stops_only_evaluate
)
test_features_of_a_shard_with_such_labels = (
  data.test_features_of_a_shard_with_such_labels
)
test_a_shards_labels_by_number_or_name = (
  data.test_a_shards_labels_by_number_or_name
)
test_a_name_in_another_encoding_is_read_with_escapes = (
  data.test_a_name_in_another_encoding_is_read_with_escapes
)

# .jfif in a shard, other suffixes in a folder.
test_jfif_is_an_image_of_a_shard = data.test_jfif_is_an_image_of_a_shard
test_a_label_whose_image_is_left_out_names_that = (
  data.test_a_label_whose_image_is_left_out_names_that
)
test_every_suffix_that_the_decoder_reads_is_an_image = (
  data.test_every_suffix_that_the_decoder_reads_is_an_image
)
test_what_is_no_image_is_counted_and_its_suffixes_named = (
  data.test_what_is_no_image_is_counted_and_its_suffixes_named
)
test_the_paths_that_cost_the_others_their_label_are_named = (
  data.test_the_paths_that_cost_the_others_their_label_are_named
)

# MacOS's doubles.
test_the_doubles_of_macos_are_left_out = (
  data.test_the_doubles_of_macos_are_left_out
)
test_the_doubles_of_macos_in_a_shard = data.test_the_doubles_of_macos_in_a_shard

# A tar archive without its end.
test_a_tar_without_its_end_names_the_command_that_mends_it = (
  data.test_a_tar_without_its_end_names_the_command_that_mends_it
)
test_the_command_mends_it = data.test_the_command_mends_it

# Parquet columns of bytes; labels as texts.
test_images_without_a_path_are_read = data.test_images_without_a_path_are_read
test_the_metadata_says_which_column_of_bytes_is_the_image = (
  data.test_the_metadata_says_which_column_of_bytes_is_the_image
)
test_labels_as_texts_are_names = data.test_labels_as_texts_are_names
test_labels_that_are_not_read_are_named = (
  data.test_labels_that_are_not_read_are_named
)
test_damaged_metadata_is_none = data.test_damaged_metadata_is_none

# A dot in the name of a column.
test_a_column_may_have_a_dot_in_its_name = (
  data.test_a_column_may_have_a_dot_in_its_name
)

# Git LFS pointers.
test_a_git_lfs_pointer_says_what_it_is = (
  data.test_a_git_lfs_pointer_says_what_it_is
)
test_a_folder_of_pointers_says_what_they_are = (
  data.test_a_folder_of_pointers_says_what_they_are
)
test_pointers_of_images_labels_names_and_means_say_what_they_are = (
  data.test_pointers_of_images_labels_names_and_means_say_what_they_are
)

# A PNG with a long text.
test_a_png_with_a_long_text_gives_its_pixels = (
  data.test_a_png_with_a_long_text_gives_its_pixels
)

# Unicode forms and line ends of names.
test_a_name_is_the_same_in_both_unicode_forms = (
  data.test_a_name_is_the_same_in_both_unicode_forms
)
test_names_that_differ_in_their_form_alone_stay_apart = (
  data.test_names_that_differ_in_their_form_alone_stay_apart
)
test_a_line_end_in_a_name_does_not_split_a_line = (
  data.test_a_line_end_in_a_name_does_not_split_a_line
)


# ------------------------------------------------------- tracebacks and hangs

# JAX_PLATFORMS, JAX_DISABLE_JIT.
test_platforms_that_cannot_start = environment.test_platforms_that_cannot_start
test_settings_of_jax = environment.test_settings_of_jax

# An encoding that lacks a letter.
test_an_encoding_that_lacks_a_letter = (
  environment.test_an_encoding_that_lacks_a_letter
)

# /dev/full and closed streams.
test_streams_that_are_full_closed_or_left = (
  environment.test_streams_that_are_full_closed_or_left
)

# A model after a fork.
test_a_model_belongs_to_its_process = (
  environment.test_a_model_belongs_to_its_process
)


# --------------------------------------------------------------- under faults

# Predictions of another run.
test_predictions_of_another_run_are_not_continued = (
  environment.test_predictions_of_another_run_are_not_continued
)
test_a_file_without_later_settings_is_still_used = (
  environment.test_a_file_without_later_settings_is_still_used
)

# An output that is a circle of links or too long.
test_outputs_that_no_file_system_takes = (
  environment.test_outputs_that_no_file_system_takes
)

# Ulimit -v.
test_too_little_memory_is_said_before_it_is_taken = (
  environment.test_too_little_memory_is_said_before_it_is_taken
)
test_memory_that_runs_out_later_is_one_message = (
  environment.test_memory_that_runs_out_later_is_one_message
)

# Control characters.
test_control_characters_are_escaped_wherever_they_are_printed = (
  environment.test_control_characters_are_escaped_wherever_they_are_printed
)

# Metadata of safetensors.
test_metadata_of_impossible_values = (
  environment.test_metadata_of_impossible_values
)
test_metadata_that_is_a_huge_integer = (
  environment.test_metadata_that_is_a_huge_integer
)

# 4,500 letters of names.
test_long_lists_of_names_are_shortened = (
  environment.test_long_lists_of_names_are_shortened
)

# A file that is a hole, or a pipe.
test_a_file_that_is_one_hole = environment.test_a_file_that_is_one_hole
test_pipes_in_the_place_of_files = environment.test_pipes_in_the_place_of_files
test_a_pipe_is_no_configuration = environment.test_a_pipe_is_no_configuration

# A store's shapes and JSON.
test_a_store_is_checked_before_tensorstore_opens_it = (
  environment.test_a_store_is_checked_before_tensorstore_opens_it
)
test_a_chunk_of_a_store_is_not_larger_than_stated = (
  environment.test_a_chunk_of_a_store_is_not_larger_than_stated
)
test_json_has_limits = environment.test_json_has_limits

# Sparse members of archives.
test_sparse_members_are_refused_by_name = (
  environment.test_sparse_members_are_refused_by_name
)

# A bomb in meta.mat.
test_a_meta_mat_is_bounded = environment.test_a_meta_mat_is_bounded

# Weights in other containers, and what lies beside them.
test_a_state_dict_lies_in_any_container = (
  weights.test_a_state_dict_lies_in_any_container
)
test_names_may_be_bytes = weights.test_names_may_be_bytes
test_a_dot_chooses_the_names_without_a_prefix_of_a_place = (
  weights.test_a_dot_chooses_the_names_without_a_prefix_of_a_place
)
test_what_is_checked_is_not_called_unread = (
  weights.test_what_is_checked_is_not_called_unread
)
test_numpy_arrays_in_place_of_tensors_are_named = (
  weights.test_numpy_arrays_in_place_of_tensors_are_named
)
test_a_large_pickle_is_not_called_damaged = (
  weights.test_a_large_pickle_is_not_called_damaged
)
test_a_pointer_in_a_folder_of_weights_says_what_it_is = (
  weights.test_a_pointer_in_a_folder_of_weights_says_what_it_is
)
test_a_configuration_may_begin_with_a_mark = (
  weights.test_a_configuration_may_begin_with_a_mark
)
test_what_transformers_configuration_states_must_fit = (
  weights.test_what_transformers_configuration_states_must_fit
)
test_flipped_channels_are_not_ignored = (
  weights.test_flipped_channels_are_not_ignored
)
test_wordnet_ids_are_kept_beside_descriptions = (
  weights.test_wordnet_ids_are_kept_beside_descriptions
)
test_lists_that_refer_to_themselves_are_read_once = (
  weights.test_lists_that_refer_to_themselves_are_read_once
)
test_a_pointer_of_predictions_says_what_it_is = (
  weights.test_a_pointer_of_predictions_says_what_it_is
)
