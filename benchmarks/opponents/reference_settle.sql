-- PostConsumeQuota of 700 after 600 were taken: the difference, the log row, the sums.
SELECT * FROM reference."tokens" WHERE id = :token ORDER BY "tokens"."id" LIMIT 1;
UPDATE reference."users" SET "quota"=quota - 100 WHERE id = :user;
UPDATE reference."tokens" SET "accessed_time"=1700000000,"remain_quota"=remain_quota - 100,"used_quota"=used_quota + 100 WHERE id = :token;
SELECT "username" FROM reference."users" WHERE id = :user;
INSERT INTO reference."logs" ("user_id","created_at","type","content","username","token_name","model_name","quota","prompt_tokens","completion_tokens","channel_id","request_id","elapsed_time","is_stream","system_prompt_reset") VALUES (:user,1700000000,2,'倍率：1.25 × 1.00 × 4.00','user' || :user,'token of ' || :user,'gpt-4o',700,374,44,:channel,'2026010112000000000000000000000',1200,true,false) RETURNING "id";
UPDATE reference."users" SET "request_count"=request_count + 1,"used_quota"=used_quota + 700 WHERE id = :user;
UPDATE reference."channels" SET "used_quota"=used_quota + 700 WHERE id = :channel;
