BEGIN TRANSACTION;
CREATE TABLE added_scores (
	experiment_id TEXT NOT NULL, 
	attempt BIGINT NOT NULL, 
	split TEXT NOT NULL, 
	metric TEXT NOT NULL, 
	version BIGINT NOT NULL, 
	unit TEXT NOT NULL, 
	value DOUBLE, 
	items TEXT NOT NULL, 
	weights TEXT, 
	failed_rows TEXT NOT NULL, 
	source_sha256 TEXT, 
	row_sha256 TEXT NOT NULL, 
	PRIMARY KEY (experiment_id, attempt, split, metric), 
	FOREIGN KEY(experiment_id, attempt) REFERENCES runs (experiment_id, attempt)
);
INSERT INTO "added_scores" VALUES('exp-a1568545aa1e431e',1,'eval','right_number@0123456789ab',1,'points',0.75,'[1.0,null,0.5]',NULL,'[{"message":"ValueError: no number","where":"rows.jsonl:2"}]','0123456789ab0000000000000000000000000000000000000000000000000000','1fdf2ad5b00991215c055aa1c3f235d30d9745adeca3d09c6fb425334bc7b77d');
CREATE TABLE checkpoint_profiles (
	pack_id TEXT NOT NULL, 
	attempt BIGINT NOT NULL, 
	num_checkpoints BIGINT NOT NULL, 
	last_bytes BIGINT NOT NULL, 
	seconds DOUBLE NOT NULL, 
	row_sha256 TEXT NOT NULL, 
	PRIMARY KEY (pack_id, attempt)
);
CREATE TABLE data_summaries (
	pack_id TEXT NOT NULL, 
	attempt BIGINT NOT NULL, 
	split TEXT NOT NULL, 
	format TEXT NOT NULL, 
	num_rows BIGINT NOT NULL, 
	num_refused_rows BIGINT NOT NULL, 
	num_truncated_rows BIGINT NOT NULL, 
	num_tokens BIGINT NOT NULL, 
	num_completion_tokens BIGINT NOT NULL, 
	num_duplicate_rows BIGINT, 
	num_leaked_rows BIGINT, 
	num_unread_rows BIGINT, 
	num_known_prompts BIGINT, 
	num_near_copies BIGINT, 
	num_compared_rows BIGINT, 
	split_by TEXT, 
	groups TEXT, 
	layout TEXT, 
	num_fallback_rows BIGINT, 
	template_preamble TEXT, 
	template_date TEXT, 
	num_asked_rows BIGINT, 
	num_long_answers BIGINT, 
	num_compared_with BIGINT, 
	num_known_rows BIGINT, 
	unused_columns TEXT, 
	unseen_fields TEXT, 
	num_texts BIGINT, 
	row_sha256 TEXT NOT NULL, 
	PRIMARY KEY (pack_id, attempt, split)
);
INSERT INTO "data_summaries" VALUES('pack-14e00be386ff2fcc',1,'train','alpaca',90,1,2,9000,4000,3,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,'8aeda4f4a4d7ce1af2e75b93e513d14985edac6d125f3bd4c037abb0e0e06607');
CREATE TABLE environments (
	environment_id TEXT NOT NULL, 
	python TEXT NOT NULL, 
	torch TEXT NOT NULL, 
	transformers TEXT NOT NULL, 
	peft TEXT NOT NULL, 
	bitsandbytes TEXT NOT NULL, 
	lorastudy TEXT NOT NULL, 
	device TEXT NOT NULL, 
	device_name TEXT NOT NULL, 
	num_threads BIGINT NOT NULL, 
	algorithms TEXT, 
	row_sha256 TEXT NOT NULL, 
	PRIMARY KEY (environment_id)
);
INSERT INTO "environments" VALUES('env-59ea281a628b4c63','3','2.13.0+cpu','5.23.0','0.21.2','0.50.2','0','cpu','a processor',1,NULL,'8481e098e867476ab1bb48885ca9eb78a5ad63d1c98efd5a6b40b61d5c7a830f');
CREATE TABLE experiments (
	experiment_id TEXT NOT NULL, 
	seed BIGINT NOT NULL, 
	config TEXT NOT NULL, 
	row_sha256 TEXT NOT NULL, 
	PRIMARY KEY (experiment_id)
);
INSERT INTO "experiments" VALUES('exp-a1568545aa1e431e',0,'{"settings":{"adam_beta1":0.9,"adam_beta2":0.999,"adam_epsilon":1e-08,"alpha_pattern":{},"base_model":"lab","bias":"none","bnb_4bit_quant_type":"nf4","bnb_4bit_use_double_quant":true,"checkpoint_minutes":5.0,"checkpoint_steps":null,"data_seed":0,"dataset_path":"lab:facts","deterministic":true,"early_stopping_patience":null,"early_stopping_threshold":0.0,"engine":"auto","eval_dataset_path":null,"eval_fraction":0.1,"eval_steps":null,"exact_match_pattern":null,"exclude_modules":null,"forgetting_dataset_path":null,"gradient_accumulation_steps":1,"gradient_checkpointing":false,"group_by_length":false,"init_lora_weights":true,"label_smoothing_factor":0.0,"layers_to_transform":null,"learning_rate":0.0002,"lora_alpha":32.0,"lora_dropout":0.0,"lora_rank":1,"loraplus_lr_ratio":null,"lr_scheduler_kwargs":{},"lr_scheduler_type":"linear","max_arms_per_pack":null,"max_eval_samples":null,"max_generation_samples":16,"max_grad_norm":1.0,"max_new_tokens":32,"max_seq_length":512,"max_steps":null,"max_train_samples":null,"method":null,"modules_to_save":null,"neftune_noise_alpha":null,"num_train_epochs":null,"optim":"adamw_torch","per_device_train_batch_size":4,"prompt_format":"auto","quantization":"bf16","rank_pattern":{},"select_checkpoint":"last","target_modules":"qkvo","test_dataset_path":null,"test_fraction":null,"train_on_inputs":false,"trainable_token_indices":null,"trust_remote_code":false,"use_dora":false,"use_rslora":false,"warmup_ratio":0.0,"warmup_steps":0,"weight_decay":0.0},"sources":{"base_model":"base","data_version":null,"dataset":"rows","eval_dataset":null,"forgetting_dataset":null,"test_dataset":null}}','3fd009bd238710547755878e195665d9e80dadd9c772a4842d48f115d330f6cb');
INSERT INTO "experiments" VALUES('exp-ed6a3f022b3fe136',0,'{"settings":{"adam_beta1":0.9,"adam_beta2":0.999,"adam_epsilon":1e-08,"alpha_pattern":{},"base_model":"lab","bias":"none","bnb_4bit_quant_type":"nf4","bnb_4bit_use_double_quant":true,"checkpoint_minutes":5.0,"checkpoint_steps":null,"data_seed":0,"dataset_path":"lab:facts","deterministic":true,"early_stopping_patience":null,"early_stopping_threshold":0.0,"engine":"auto","eval_dataset_path":null,"eval_fraction":0.1,"eval_steps":null,"exact_match_pattern":null,"exclude_modules":null,"forgetting_dataset_path":null,"gradient_accumulation_steps":1,"gradient_checkpointing":false,"group_by_length":false,"init_lora_weights":true,"label_smoothing_factor":0.0,"layers_to_transform":null,"learning_rate":0.0002,"lora_alpha":32.0,"lora_dropout":0.0,"lora_rank":2,"loraplus_lr_ratio":null,"lr_scheduler_kwargs":{},"lr_scheduler_type":"linear","max_arms_per_pack":null,"max_eval_samples":null,"max_generation_samples":16,"max_grad_norm":1.0,"max_new_tokens":32,"max_seq_length":512,"max_steps":null,"max_train_samples":null,"method":null,"modules_to_save":null,"neftune_noise_alpha":null,"num_train_epochs":null,"optim":"adamw_torch","per_device_train_batch_size":4,"prompt_format":"auto","quantization":"bf16","rank_pattern":{},"select_checkpoint":"last","target_modules":"qkvo","test_dataset_path":null,"test_fraction":null,"train_on_inputs":false,"trainable_token_indices":null,"trust_remote_code":false,"use_dora":false,"use_rslora":false,"warmup_ratio":0.0,"warmup_steps":0,"weight_decay":0.0},"sources":{"base_model":"base","data_version":null,"dataset":"rows","eval_dataset":null,"forgetting_dataset":null,"test_dataset":null}}','1748fe3a0217ec4a0f76a2b96455e1c5b2ed8ed11de1158619898b4013ec0b01');
CREATE TABLE generations (
	experiment_id TEXT NOT NULL, 
	attempt BIGINT NOT NULL, 
	position BIGINT NOT NULL, 
	prompt TEXT NOT NULL, 
	reference TEXT NOT NULL, 
	answer TEXT NOT NULL, 
	split TEXT, 
	"row" BIGINT, 
	row_sha256 TEXT NOT NULL, 
	PRIMARY KEY (experiment_id, attempt, position), 
	FOREIGN KEY(experiment_id, attempt) REFERENCES runs (experiment_id, attempt)
);
INSERT INTO "generations" VALUES('exp-a1568545aa1e431e',1,0,'2+2=','4','0.9172298337468625',NULL,NULL,'2ee7baa6c28e1e74dad71fa51d2f5550307eded9a6165edc6126c12a1c4967d9');
INSERT INTO "generations" VALUES('exp-ed6a3f022b3fe136',1,0,'2+2=','4','0.36039968158511826',NULL,NULL,'334c7ac073d2fd92ab2b668a7834585671a7e3a504ab47b9f5d418a6606b2e0a');
CREATE TABLE imported_results (
	result_id TEXT NOT NULL, 
	import_id TEXT NOT NULL, 
	position BIGINT NOT NULL, 
	location TEXT NOT NULL, 
	arm TEXT NOT NULL, 
	seed BIGINT, 
	config TEXT NOT NULL, 
	scores TEXT NOT NULL, 
	costs TEXT NOT NULL, 
	row_sha256 TEXT NOT NULL, 
	PRIMARY KEY (result_id), 
	FOREIGN KEY(import_id) REFERENCES imports (import_id)
);
INSERT INTO "imported_results" VALUES('imp-835581cd19d605c5','import-de6cb3048b93f127',0,'results.csv:2','r8',0,'{"is_diverged":false,"settings":{"lora_rank":8},"sources":{"base_model":"org/model"}}','[{"lower_is_better":false,"metric":"accuracy","num_items":100,"unit":"share","value":0.5}]','{"num_trainable_parameters":1000.0}','0fbb9d7f2b90ecbe3755d5959731bf73ce1e21b03d848758901b2ce44225650a');
CREATE TABLE imports (
	import_id TEXT NOT NULL, 
	suite_name TEXT NOT NULL, 
	tool TEXT NOT NULL, 
	file TEXT NOT NULL, 
	file_sha256 TEXT NOT NULL, 
	imported_at TEXT NOT NULL, 
	row_sha256 TEXT NOT NULL, 
	PRIMARY KEY (import_id)
);
INSERT INTO "imports" VALUES('import-de6cb3048b93f127','elsewhere','another tool','results.csv','00ff','2026-12-01T03:35:54.564033+00:00','c0e4a404415bf14de3a66d4014f496c310e7ef92949f3f2c5ac87c8e0d6a2bea');
CREATE TABLE incidents (
	pack_id TEXT NOT NULL, 
	attempt BIGINT NOT NULL, 
	position BIGINT NOT NULL, 
	kind TEXT NOT NULL, 
	step BIGINT, 
	message TEXT NOT NULL, 
	row_sha256 TEXT NOT NULL, 
	PRIMARY KEY (pack_id, attempt, position)
);
CREATE TABLE lorastudy_version (
	version_num TEXT NOT NULL
);
INSERT INTO "lorastudy_version" VALUES('r0005');
CREATE TABLE pack_environments (
	pack_id TEXT NOT NULL, 
	attempt BIGINT NOT NULL, 
	environment_id TEXT NOT NULL, 
	row_sha256 TEXT NOT NULL, 
	PRIMARY KEY (pack_id, attempt), 
	FOREIGN KEY(environment_id) REFERENCES environments (environment_id)
);
INSERT INTO "pack_environments" VALUES('pack-14e00be386ff2fcc',1,'env-59ea281a628b4c63','8af664627fabb7846467897852eafa2d45f6652aa54b4b16b2e8ebdbbe302edf');
CREATE TABLE pack_profiles (
	pack_id TEXT NOT NULL, 
	attempt BIGINT NOT NULL, 
	engine TEXT NOT NULL, 
	num_arms BIGINT NOT NULL, 
	memory_kind TEXT NOT NULL, 
	peak_memory_bytes BIGINT, 
	median_step_seconds DOUBLE, 
	tokens_per_second DOUBLE, 
	load_seconds DOUBLE NOT NULL, 
	train_seconds DOUBLE NOT NULL, 
	eval_seconds DOUBLE NOT NULL, 
	cuda_allocator TEXT, 
	row_sha256 TEXT NOT NULL, 
	PRIMARY KEY (pack_id, attempt)
);
INSERT INTO "pack_profiles" VALUES('pack-14e00be386ff2fcc',1,'packed',2,'cpu_resident',NULL,0.125,1000.0,1.0,30.0,2.0,NULL,'9d948c5006d2df79320f83e31dd20d787a885d3106c16b10f6f53d9ea00a53aa');
CREATE TABLE pack_steps (
	pack_id TEXT NOT NULL, 
	attempt BIGINT NOT NULL, 
	step BIGINT NOT NULL, 
	num_steps BIGINT NOT NULL, 
	num_tokens BIGINT NOT NULL, 
	num_completion_tokens BIGINT NOT NULL, 
	seconds DOUBLE NOT NULL, 
	row_sha256 TEXT NOT NULL, 
	PRIMARY KEY (pack_id, attempt, step)
);
INSERT INTO "pack_steps" VALUES('pack-14e00be386ff2fcc',1,1,3,64,32,0.125,'00d841cbf5f6f5a75d7ac8a5fede0e8dd369bc20b8b712102e0af5b574b430c6');
INSERT INTO "pack_steps" VALUES('pack-14e00be386ff2fcc',1,2,3,64,32,0.125,'46845b4d7ea1510d5dee547cdffde70031489481417307ec337c8ef77ad09247');
INSERT INTO "pack_steps" VALUES('pack-14e00be386ff2fcc',1,3,3,64,32,0.125,'4510f5d3f82b98353286926aa61cf1abe29b30056027fbfa0052a5473fe4b6d4');
CREATE TABLE predictions (
	experiment_id TEXT NOT NULL, 
	attempt BIGINT NOT NULL, 
	memory_kind TEXT NOT NULL, 
	num_tokens BIGINT NOT NULL, 
	num_labels BIGINT NOT NULL, 
	alone_bytes BIGINT NOT NULL, 
	pack_bytes BIGINT NOT NULL, 
	step_seconds DOUBLE, 
	base_weights BIGINT NOT NULL, 
	quantisation_constants BIGINT NOT NULL, 
	adapters BIGINT NOT NULL, 
	gradients BIGINT NOT NULL, 
	optimizer BIGINT NOT NULL, 
	activations BIGINT NOT NULL, 
	loss BIGINT NOT NULL, 
	workspace BIGINT NOT NULL, 
	allocator_slack BIGINT NOT NULL, 
	row_sha256 TEXT NOT NULL, 
	PRIMARY KEY (experiment_id, attempt), 
	FOREIGN KEY(experiment_id, attempt) REFERENCES runs (experiment_id, attempt)
);
CREATE TABLE profiles (
	experiment_id TEXT NOT NULL, 
	attempt BIGINT NOT NULL, 
	num_trainable_parameters BIGINT NOT NULL, 
	num_total_parameters BIGINT NOT NULL, 
	adapter_bytes BIGINT NOT NULL, 
	memory_kind TEXT NOT NULL, 
	peak_memory_bytes BIGINT, 
	step_seconds DOUBLE, 
	tokens_per_second DOUBLE, 
	num_timed_steps BIGINT, 
	step_quartile_distance_seconds DOUBLE, 
	step_times_apart DOUBLE, 
	modules_by_role TEXT, 
	modules_left_out TEXT, 
	modules_digest TEXT, 
	row_sha256 TEXT NOT NULL, 
	PRIMARY KEY (experiment_id, attempt), 
	FOREIGN KEY(experiment_id, attempt) REFERENCES runs (experiment_id, attempt)
);
INSERT INTO "profiles" VALUES('exp-a1568545aa1e431e',1,10,110,40,'cpu_tensors',8589934592,0.25,NULL,6,0.03125,0.015625,NULL,'[]',NULL,'635111b371b3e811d584089e785b20173f4b4e4338bd588bc308fdc62e4f7b09');
INSERT INTO "profiles" VALUES('exp-ed6a3f022b3fe136',1,10,110,40,'cpu_tensors',8589934592,0.25,NULL,6,0.03125,0.015625,NULL,'[]',NULL,'43a8376aa54189fe8f48c15a10c11ef5a9bc73bdcab51dcc60787c9f6cb3373d');
CREATE TABLE runs (
	experiment_id TEXT NOT NULL, 
	attempt BIGINT NOT NULL, 
	status TEXT NOT NULL, 
	pack_id TEXT NOT NULL, 
	engine TEXT NOT NULL, 
	run_folder TEXT NOT NULL, 
	started_at TEXT NOT NULL, 
	finished_at TEXT, 
	failure_kind TEXT, 
	failure_message TEXT, 
	traceback TEXT, 
	adapter_path TEXT, 
	num_steps BIGINT, 
	num_planned_steps BIGINT, 
	selected_step BIGINT, 
	row_sha256 TEXT NOT NULL, 
	PRIMARY KEY (experiment_id, attempt), 
	FOREIGN KEY(experiment_id) REFERENCES experiments (experiment_id)
);
INSERT INTO "runs" VALUES('exp-a1568545aa1e431e',1,'completed','pack-14e00be386ff2fcc','auto','results/runs/pack-14e00be386ff2fcc/attempt-1','2026-12-01T03:35:54.404072+00:00','2026-12-01T03:35:54.494693+00:00',NULL,NULL,NULL,'adapters/exp-a1568545aa1e431e',3,NULL,NULL,'2c0380743adc7805e4cf46cda038a29ebdaf2128c337f80b023f5e66b85b19fa');
INSERT INTO "runs" VALUES('exp-ed6a3f022b3fe136',1,'completed','pack-14e00be386ff2fcc','auto','results/runs/pack-14e00be386ff2fcc/attempt-1','2026-12-01T03:35:54.413092+00:00','2026-12-01T03:35:54.506816+00:00',NULL,NULL,NULL,'adapters/exp-ed6a3f022b3fe136',3,NULL,NULL,'5e2a6972f7a5a59925a406e5f015cfdee4170e0ebaa69e9d93602af646df5d54');
CREATE TABLE score_items (
	experiment_id TEXT NOT NULL, 
	attempt BIGINT NOT NULL, 
	split TEXT NOT NULL, 
	metric TEXT NOT NULL, 
	items TEXT NOT NULL, 
	weights TEXT, 
	row_sha256 TEXT NOT NULL, 
	PRIMARY KEY (experiment_id, attempt, split, metric), 
	FOREIGN KEY(experiment_id, attempt, split, metric) REFERENCES scores (experiment_id, attempt, split, metric)
);
INSERT INTO "score_items" VALUES('exp-a1568545aa1e431e',1,'eval','loss','[0.48186862621269455,0.666325307064902,0.04340560245805847,0.35907626381720803]',NULL,'9997460c0cee3b085f0d047a1c63fe584f3783c61b13b9834616c8d66c1fe233');
INSERT INTO "score_items" VALUES('exp-a1568545aa1e431e',1,'eval','token_accuracy','[0.6578531965161893,0.3887493378654945,0.3679366888853508,0.43981831523147363]',NULL,'1aa89983c771a62368781b7cfa6acad26bab21e9df6b11a034316e8c387b4e31');
INSERT INTO "score_items" VALUES('exp-ed6a3f022b3fe136',1,'eval','loss','[0.50297687253018,0.2075134472028033,0.740580985365547,0.03931263104801985]',NULL,'5c32c7cbe7a454fa488f8266cc86c1b1eea7209bf028d936f8a3d1c7121743b2');
INSERT INTO "score_items" VALUES('exp-ed6a3f022b3fe136',1,'eval','token_accuracy','[0.7132540291821741,0.18872248759065613,0.3648055084917168,0.9450443022862807]',NULL,'9925badb36af44bf3705a76e540ea1d574029217ed009bf2540edb7e2753e239');
CREATE TABLE scores (
	experiment_id TEXT NOT NULL, 
	attempt BIGINT NOT NULL, 
	split TEXT NOT NULL, 
	metric TEXT NOT NULL, 
	version BIGINT NOT NULL, 
	unit TEXT NOT NULL, 
	value DOUBLE NOT NULL, 
	num_items BIGINT NOT NULL, 
	step BIGINT, 
	train_seconds DOUBLE, 
	row_sha256 TEXT NOT NULL, 
	PRIMARY KEY (experiment_id, attempt, split, metric), 
	FOREIGN KEY(experiment_id, attempt) REFERENCES runs (experiment_id, attempt)
);
INSERT INTO "scores" VALUES('exp-a1568545aa1e431e',1,'eval','loss',1,'nats/token',3.87668949888215763621e-01,4,NULL,NULL,'3cf0c31d32cc1d970d6a80376e3f2004d03f05530f6fa79edbfe5a8489562e10');
INSERT INTO "scores" VALUES('exp-a1568545aa1e431e',1,'eval','token_accuracy',1,'nats/token',4.63589384624627065534e-01,4,NULL,NULL,'342a701fd7a919eeb0c866ac5dcd9bc7ba8b68141238bf7071dfd23619d8ba4a');
INSERT INTO "scores" VALUES('exp-ed6a3f022b3fe136',1,'eval','loss',1,'nats/token',3.72595984036637517533e-01,4,NULL,NULL,'a410d6499651eec39e7e760d0c5680af869378fdfa85422a1516578a9ab31776');
INSERT INTO "scores" VALUES('exp-ed6a3f022b3fe136',1,'eval','token_accuracy',1,'nats/token',5.52956581887706910549e-01,4,NULL,NULL,'c161e858d765f5e011d3fee7666ab87cbc8a02c2075818a19aeafa5db84a8cd6');
CREATE TABLE steps (
	experiment_id TEXT NOT NULL, 
	attempt BIGINT NOT NULL, 
	step BIGINT NOT NULL, 
	loss DOUBLE, 
	learning_rate DOUBLE NOT NULL, 
	grad_norm DOUBLE, 
	row_sha256 TEXT NOT NULL, 
	PRIMARY KEY (experiment_id, attempt, step), 
	FOREIGN KEY(experiment_id, attempt) REFERENCES runs (experiment_id, attempt)
);
INSERT INTO "steps" VALUES('exp-a1568545aa1e431e',1,1,0.666325307064902,0.001,NULL,'7d5d087e2f6b9fb25d00363bfb5a7d0ab24600ca6af8966e881220e80bf77b0b');
INSERT INTO "steps" VALUES('exp-ed6a3f022b3fe136',1,1,2.07513447202803291702e-01,0.001,NULL,'b59af6107f53a5faa3afbef352d6af26bd81949f132fb1c513d08c38c864f7f8');
INSERT INTO "steps" VALUES('exp-a1568545aa1e431e',1,2,4.34056024580584676186e-02,0.001,NULL,'cfbc810c303589f951b72767d3bdfb8c9dec1e92e501cb288cb87fc9283843ef');
INSERT INTO "steps" VALUES('exp-ed6a3f022b3fe136',1,2,0.740580985365547,0.001,NULL,'656430bd3f596d8d3bba1adc2a27f0ed4067e6fc43739c58636069b5a221a641');
INSERT INTO "steps" VALUES('exp-a1568545aa1e431e',1,3,3.59076263817208030104e-01,0.001,NULL,'cf492ac09bccee457781c80ac9b2e7adc116cbfb24aa78843441b97326f66e29');
INSERT INTO "steps" VALUES('exp-ed6a3f022b3fe136',1,3,3.9312631048019852642e-02,0.001,NULL,'9a26aca82d7704fd5e0c8e2f85c3828ccb7ac42efc255f076f015a9abf76baf0');
CREATE TABLE suite_decisions (
	suite_name TEXT NOT NULL, 
	"key" TEXT NOT NULL, 
	decision TEXT NOT NULL, 
	decided_at TEXT NOT NULL, 
	row_sha256 TEXT NOT NULL, 
	PRIMARY KEY (suite_name, "key"), 
	FOREIGN KEY(suite_name) REFERENCES suites (suite_name)
);
INSERT INTO "suite_decisions" VALUES('torture','decision-1','{"pruned":{}}','2026-12-01T03:35:54.609846+00:00','57697c3e1d83ac53b1838ea21334547a12bec3128a57b042b3670420a4860767');
CREATE TABLE suite_designs (
	suite_name TEXT NOT NULL, 
	design TEXT NOT NULL, 
	row_sha256 TEXT NOT NULL, 
	PRIMARY KEY (suite_name), 
	FOREIGN KEY(suite_name) REFERENCES suites (suite_name)
);
INSERT INTO "suite_designs" VALUES('torture','{"arms":[]}','e78cef537b390ba5a9fcd1f62bea49a1ae5242b68baba9438acb5a10c606724c');
CREATE TABLE suite_experiments (
	suite_name TEXT NOT NULL, 
	experiment_id TEXT NOT NULL, 
	name TEXT NOT NULL, 
	arm TEXT NOT NULL, 
	experiment_type TEXT NOT NULL, 
	position BIGINT NOT NULL, 
	row_sha256 TEXT NOT NULL, 
	PRIMARY KEY (suite_name, experiment_id), 
	FOREIGN KEY(suite_name) REFERENCES suites (suite_name), 
	FOREIGN KEY(experiment_id) REFERENCES experiments (experiment_id)
);
INSERT INTO "suite_experiments" VALUES('torture','exp-a1568545aa1e431e','r1_d0','r1','rank_ablation',0,'0a18f147a15f999a9a283981a6e8eb937413033f8d26a434dd5fb40e3fe6a67b');
INSERT INTO "suite_experiments" VALUES('torture','exp-ed6a3f022b3fe136','r2_d0','r2','rank_ablation',1,'1da6e3fccc812e1b632117811d0dbbf16d5c4dc505d4bda8f700d973265289c5');
CREATE TABLE suite_questions (
	suite_name TEXT NOT NULL, 
	number BIGINT NOT NULL, 
	question_id TEXT NOT NULL, 
	question TEXT NOT NULL, 
	stated_at TEXT NOT NULL, 
	num_completed BIGINT NOT NULL, 
	row_sha256 TEXT NOT NULL, 
	PRIMARY KEY (suite_name, number), 
	FOREIGN KEY(suite_name) REFERENCES suites (suite_name)
);
CREATE TABLE suites (
	suite_name TEXT NOT NULL, 
	description TEXT NOT NULL, 
	created_at TEXT NOT NULL, 
	row_sha256 TEXT NOT NULL, 
	PRIMARY KEY (suite_name)
);
INSERT INTO "suites" VALUES('torture','','2026-12-01T03:35:53.750699+00:00','16f949084661bdbf6fc25fc729227bdfb40c7723258923b7285af0bf21002fed');
CREATE TABLE trivial_scores (
	pack_id TEXT NOT NULL, 
	attempt BIGINT NOT NULL, 
	split TEXT NOT NULL, 
	predictor TEXT NOT NULL, 
	metric TEXT NOT NULL, 
	version BIGINT NOT NULL, 
	unit TEXT NOT NULL, 
	value DOUBLE NOT NULL, 
	items TEXT NOT NULL, 
	weights TEXT, 
	answer TEXT, 
	row_sha256 TEXT NOT NULL, 
	PRIMARY KEY (pack_id, attempt, split, predictor, metric)
);
INSERT INTO "trivial_scores" VALUES('pack-14e00be386ff2fcc',1,'eval','constant','exact_match',2,'',0.25,'[0.0,1.0,0.0,0.0]',NULL,'4','a46cfc928e3b4ec727e58c7c2692792446b1340169c85a9a52aab7f0478b45bb');
CREATE INDEX runs_by_pack ON runs (pack_id, attempt);
COMMIT;
